"""SIGReg's hyper-parameters (LeJEPA, arXiv 2511.08544). Needs no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from ssl_vit.methods.base_config import Choices, Fraction, Situation, optimiser_choices
from ssl_vit.methods.joint_settings import MultiCropConfig
from ssl_vit.registry import register_method


@register_method("sigreg", loss="ssl_vit.methods.sigreg:SIGReg")
class Config(MultiCropConfig):
    """Views that agree, with projections whose characteristic function is a normal distribution's (LeJEPA)."""

    name: Literal["sigreg"] = "sigreg"
    """Name of the method, as `ssl-vit list methods` prints it."""

    idea: ClassVar[str] = (
        "Views of an image agree on a projection, and the projections of all images look like random normal numbers."
    )
    needs: ClassVar[str] = "any backbone; with local crops, one that takes images of other sizes"
    choose_when: ClassVar[str] = "You have few images, and want one loss without teacher, negatives or temperatures."

    weight: Fraction = 0.05
    """Share of the regulariser in the loss; the distance of views has the rest (paper: 0.02 to 0.05)."""

    def choose(self, given: Situation) -> Choices:
        """The paper's recipe for ImageNet."""
        return self.multi_crop_choices(given) | optimiser_choices(
            given, "paper's recipe", lr=(5e-4, 256), weight_decay=0.05, warmup_epochs=10.0, clip=1.0
        )
