"""VISReg's hyper-parameters (arXiv 2606.02572). Needs no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from ssl_vit.methods.base_config import AUTO, SMALL, Auto, Choices, Fraction, Situation, optimiser_choices
from ssl_vit.methods.joint_settings import MultiCropConfig
from ssl_vit.registry import register_method


@register_method("visreg", loss="ssl_vit.methods.visreg:VISReg")
class Config(MultiCropConfig):
    """Views that agree, with projections of mean 0, deviation 1 and a normal distribution's shape."""

    name: Literal["visreg"] = "visreg"
    """Name of the method, as `ssl-vit list methods` prints it."""

    idea: ClassVar[str] = (
        "Views of an image agree on a projection, whose mean, spread and shape over images are kept those of "
        "normal numbers."
    )
    needs: ClassVar[str] = "any backbone; with local crops, one that takes images of other sizes"
    choose_when: ClassVar[str] = (
        "As sigreg, where collapse is a danger: its gradient does not vanish when all images have one projection."
    )

    weight: Auto[Fraction] = AUTO
    """Share of the regulariser in the loss; the distance of views has the rest (paper: 0.9; small sets: 0.6)."""

    def choose(self, given: Situation) -> Choices:
        """The paper's recipes for ImageNet and for small sets."""
        weight = (0.6, "paper, small sets") if given.images < SMALL else (0.9, "paper")
        return (
            {"method.weight": weight}
            | self.multi_crop_choices(given)
            | optimiser_choices(
                given, "paper's recipe", lr=(9e-4, 1024), weight_decay=0.05, warmup_epochs=10.0, clip=1.0
            )
        )
