"""MoCo v3's hyper-parameters (arXiv 2104.02057). Needs no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from ssl_vit.methods.base_config import Choices, Positive, Situation, TwoViewConfig, optimiser_choices
from ssl_vit.registry import register_method


@register_method("mocov3", loss="ssl_vit.methods.mocov3:MoCoV3")
class Config(TwoViewConfig):
    """Contrast of each view with its other view's key among the keys of the whole batch."""

    name: Literal["mocov3"] = "mocov3"
    """Name of the method, as `ssl-vit list methods` prints it."""

    idea: ClassVar[str] = (
        "Each view must pick out its image's other view, as its moving average sees it, from the rest of the batch."
    )
    needs: ClassVar[str] = "any backbone; batches of a thousand images or more for the published accuracy"
    choose_when: ClassVar[str] = "You have the memory for large batches and want a plain contrastive baseline."

    temperature: Positive = 0.2
    """Temperature of the contrast (paper: 0.2 for transformers)."""
    freeze_patch_embedding: bool = True
    """Leave the patch projection as it was drawn, in a backbone that has one (paper: true, for stability)."""

    def choose(self, given: Situation) -> Choices:
        """The paper's recipe for transformers; for convolutional networks MoCo v2's, as there is no LARS here."""
        if given.kind == "convolutional":
            why = "MoCo v2's recipe for a ResNet-50"
            return self.common_choices(given) | optimiser_choices(
                given, why, optimizer="sgd", lr=(0.03, 256), weight_decay=1e-4, warmup_epochs=10.0
            )
        return self.common_choices(given) | optimiser_choices(
            given, "paper's recipe", lr=(1.5e-4, 256), weight_decay=0.1, warmup_epochs=40.0
        )
