"""BEiT's hyper-parameters and tokenizers (arXiv 2106.08254). Needs no torch.

"Official" below is the authors' recipe for a ViT-B/16, 800 epochs of ImageNet in batches of 2048.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from ssl_vit.errors import UserError
from ssl_vit.methods.base_config import (
    AUTO,
    SMALL,
    Auto,
    Change,
    Choices,
    Count,
    CountOrZero,
    MaskedConfig,
    MethodConfig,
    Part,
    Situation,
    optimiser_choices,
)
from ssl_vit.registry import register_method


@register_method("beit", loss="ssl_vit.methods.beit:BEiT")
class Config(MaskedConfig):
    """Prediction of the visual words of hidden patches."""

    name: Literal["beit"] = "beit"
    """Name of the method, as `ssl-vit list methods` prints it."""

    idea: ClassVar[str] = (
        "Blocks of an image are hidden, and from the rest the network predicts which visual words stand there; the "
        "vocabulary is learnt from your images first."
    )
    needs: ClassVar[str] = "any backbone with a grid of 2 x 2 patches or more, best a transformer"
    choose_when: ClassVar[str] = "You will fine-tune the network; its features are less ready for k-NN than DINO's."
    advice: ClassVar[Mapping[str, Sequence[Change | str] | str]] = {
        **MethodConfig.advice,
        "uniform collapse": (
            Change("raise", "optim.lr"),
            Change("lower", "method.codes", when=("method.tokenizer", "own")),
        ),
        "not learning yet": (
            Change("raise", "train.epochs"),
            Change("raise", "optim.lr"),
            Change("lower", "method.codes", when=("method.tokenizer", "own")),
        ),
    }
    masks: ClassVar[bool] = True
    colours: ClassVar[tuple[float, float, float, float] | None] = (0.4, 0.4, 0.4, 0.0)

    mask_ratio: Part = 75 / 196
    """Share of an image's patches that is hidden, at most (official: 75 of 196)."""
    tokenizer: Literal["own", "dalle", "teacher"] = "own"
    """What makes the words: a small VQ-VAE fitted on your images, DALL-E's (official), or one that is fitted to the
    features of a frozen teacher (BEiT v2, arXiv 2208.06366)."""
    tokenizer_weights: str | None = None
    """File of DALL-E's encoder, or file or folder of the teacher."""
    tokenizer_backbone: str | None = None
    """Name of the teacher's network, where its file does not say it."""
    codes: Auto[Count] = AUTO
    """Words of the vocabulary that is fitted (DALL-E's has 8192)."""
    tokenizer_steps: Auto[CountOrZero] = AUTO
    """Steps for which the tokenizer is fitted before pretraining begins; 0 leaves it random, to compare with."""

    def choose(self, given: Situation) -> Choices:
        """The official recipe; on small sets a small vocabulary, fitted in a minute."""
        small = given.images < SMALL
        official = "official recipe"
        words = (64, "small set: words so common that few steps learn them") if small else (8192, "as many as DALL-E's")
        steps = (400, "small set: the words settle within them") if small else (3000, "a few minutes")
        optimiser = optimiser_choices(
            given,
            official,
            lr=(1.5e-3, 2048),
            min_lr=1 / 150,
            weight_decay=0.05,
            warmup_epochs=10.0,
            clip=3.0,
            drop_path=0.1,
        )
        return {"method.codes": words, "method.tokenizer_steps": steps} | optimiser

    def check(self, given: Situation) -> None:
        """Something is hidden, and the tokenizer's file is what it should be."""
        super().check(given)
        if self.tokenizer == "own":
            if self.tokenizer_weights is not None:
                raise UserError(
                    "method.tokenizer_weights: read with method.tokenizer=dalle or teacher only; set that too"
                )
            return
        if self.tokenizer_weights is None:
            raise UserError(
                f"method.tokenizer_weights: {self.tokenizer} needs a file; set method.tokenizer_weights=FILE, or "
                "method.tokenizer=own, which needs none"
            )
        if self.tokenizer == "dalle":
            from ssl_vit.tokenizers.dalle import read_encoder

            read_encoder(self.tokenizer_weights)
        else:
            from ssl_vit.checkpoints.load import backbone_of_file

            backbone_of_file(self.tokenizer_weights, self.tokenizer_backbone)
