"""VICReg's hyper-parameters (arXiv 2105.04906). Needs no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from ssl_vit.data.plan import ViewPlan
from ssl_vit.methods.base_config import (
    AUTO,
    SMALL,
    Auto,
    Choices,
    Count,
    NonNegative,
    Situation,
    optimiser_choices,
    two_views,
)
from ssl_vit.methods.joint_settings import JointConfig
from ssl_vit.registry import register_method


@register_method("vicreg", loss="ssl_vit.methods.vicreg:VICReg")
class Config(JointConfig):
    """One projection for both views, kept from collapse by the variance and covariance of its dimensions."""

    name: Literal["vicreg"] = "vicreg"
    """Name of the method, as `ssl-vit list methods` prints it."""

    idea: ClassVar[str] = (
        "Two views get the same projection, each of whose numbers must vary from image to image and tell something new."
    )
    needs: ClassVar[str] = "any backbone"
    choose_when: ClassVar[str] = "You want neither negatives nor a teacher, and losses whose parts can be read."

    hidden_dim: Auto[Count] = AUTO
    """Width of the projector's two hidden layers (paper: 8192)."""
    out_dim: Auto[Count] = AUTO
    """Length of a projection (paper: 8192)."""
    invariance: NonNegative = 25.0
    """Weight of the distance of two views (paper: 25)."""
    variance: NonNegative = 25.0
    """Weight of the deviations that are below 1 (paper: 25)."""
    covariance: NonNegative = 1.0
    """Weight of the covariances (paper: 1)."""

    def choose(self, given: Situation) -> Choices:
        """The paper's recipe; of few images narrower projections, of which a small batch says enough."""
        choices = self.crop_choices(given, 0.08, "paper")
        width = (8192, "paper")
        if given.images < SMALL:
            width = (min(8192, 4 * max(given.dim, 128)), "small set: four times the features, at least 512")
        choices |= {"method.hidden_dim": width, "method.out_dim": width}
        if given.kind == "convolutional":
            why = "SimSiam's SGD for a ResNet-50 (2011.10566), as the paper's LARS is not here"
            return choices | optimiser_choices(
                given, why, optimizer="sgd", lr=(0.05, 256), weight_decay=1e-4, warmup_epochs=10.0
            )
        why = "MoCo v3's for transformers (2104.02057), as the paper has none"
        return choices | optimiser_choices(given, why, lr=(1.5e-4, 256), weight_decay=0.1, warmup_epochs=40.0)

    def views(self, image_size: int) -> ViewPlan:
        """BYOL's two views of ``image_size`` pixels."""
        return ViewPlan(two_views(image_size, self.scale, self.flip))
