"""SimMIM's hyper-parameters (arXiv 2111.09886). Needs no torch.

"Official" below is the authors' recipe for a Swin-B or ViT-B, 800 epochs of ImageNet in batches of 2048.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from ssl_vit.methods.base_config import Choices, MaskedConfig, Part, Scale, Situation, optimiser_choices
from ssl_vit.registry import register_method


@register_method("simmim", loss="ssl_vit.methods.simmim:SimMIM")
class Config(MaskedConfig):
    """Prediction of the pixels of hidden squares."""

    name: Literal["simmim"] = "simmim"
    """Name of the method, as `ssl-vit list methods` prints it."""

    idea: ClassVar[str] = "Squares of an image are hidden, and from the rest one linear layer predicts their pixels."
    needs: ClassVar[str] = "any backbone with a grid of 2 x 2 patches or more, best a transformer or Swin"
    choose_when: ClassVar[str] = "You will fine-tune a pyramid and want the simplest masked method."
    masks: ClassVar[bool] = True

    mask_ratio: Part = 0.6
    """Share of an image's squares that is hidden (official: 0.6)."""
    scale: Scale = (0.67, 1.0)
    """Share of the image's area that the crop covers, low and high (official: 0.67 to 1)."""

    def choose(self, given: Situation) -> Choices:
        """The official recipe."""
        return optimiser_choices(
            given,
            "official recipe",
            lr=(2e-4, 512),
            min_lr=0.1,
            weight_decay=0.05,
            warmup_epochs=10.0,
            clip=5.0,
            drop_path=0.0,
        )
