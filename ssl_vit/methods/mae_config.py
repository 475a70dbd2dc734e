"""MAE's hyper-parameters (arXiv 2111.06377). Needs no torch.

"Official" below is the authors' recipe for a ViT-B/16, 800 epochs of ImageNet in batches of 4096.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from ssl_vit.errors import UserError
from ssl_vit.methods.base_config import (
    AUTO,
    SMALL,
    Auto,
    Choices,
    Count,
    MaskedConfig,
    Part,
    Scale,
    Situation,
    optimiser_choices,
)
from ssl_vit.registry import register_method


@register_method("mae", loss="ssl_vit.methods.mae:MAE")
class Config(MaskedConfig):
    """Reconstruction of an image from a quarter of its patches."""

    name: Literal["mae"] = "mae"
    """Name of the method, as `ssl-vit list methods` prints it."""

    idea: ClassVar[str] = (
        "The network sees a quarter of an image's patches, and a small decoder paints the others from what it makes of "
        "them."
    )
    needs: ClassVar[str] = "a plain transformer, ViT or DeiT: others can't leave patches out"
    choose_when: ClassVar[str] = (
        "You will fine-tune a large ViT and have little GPU time: three quarters of each image cost nothing."
    )
    plain_only: ClassVar[str | None] = "no plain ViT, which alone can leave hidden patches out of the computation"

    mask_ratio: Part = 0.75
    """Share of an image's patches that is hidden (official: 0.75)."""
    scale: Scale = (0.2, 1.0)
    """Share of the image's area that the crop covers, low and high (official: 0.2 to 1)."""
    decoder_dim: Auto[Count] = AUTO
    """Width of the decoder (official: 512)."""
    decoder_depth: Auto[Count] = AUTO
    """Blocks of the decoder (official: 8)."""
    decoder_heads: Auto[Count] = AUTO
    """Attention heads of the decoder (official: 16)."""

    def choose(self, given: Situation) -> Choices:
        """The official recipe; for narrow networks a narrow decoder."""
        official = "official recipe"
        small = given.images < SMALL and given.dim < 512
        decoder: Choices = {
            "method.decoder_dim": (128, "small set and network") if small else (512, official),
            "method.decoder_depth": (2, "small set and network") if small else (8, official),
            "method.decoder_heads": (4, "small set and network") if small else (16, official),
        }
        return decoder | optimiser_choices(
            given, official, lr=(1.5e-4, 256), weight_decay=0.05, warmup_epochs=40.0, beta2=0.95
        )

    def check(self, given: Situation) -> None:
        """The decoder's width is shared by its heads and by sines and cosines of rows and columns."""
        super().check(given)
        dim, heads = self.decoder_dim, self.decoder_heads
        if dim % heads or dim % 4:
            raise UserError(f"method.decoder_dim: {dim} is not a multiple of 4 and of the {heads} method.decoder_heads")
