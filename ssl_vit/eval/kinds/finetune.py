"""The kind of score "finetune"; ``ssl_vit/eval/finetune.py`` computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from ssl_vit.eval.kind import FeatureKind, Number
from ssl_vit.eval.kinds import register_kind
from ssl_vit.settings import Count, NonNegative, Positive

if TYPE_CHECKING:
    from ssl_vit.eval.job import Job, Outcome


def _even(batch: int) -> int:
    if batch % 2:
        raise ValueError("an even number, since mixup mixes images in pairs")
    return batch


Even = Annotated[Count, AfterValidator(_even)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(gt=0, le=1)]


@register_kind("finetune")
class Finetune(FeatureKind):
    """The whole network learns the classes, with layer decay, mixup and smoothed labels."""

    epochs: Number[Count] = 100
    """Passes over train (MAE, arXiv 2111.06377, of a ViT-B: 100)."""
    batch: Number[Even] = 64
    """Images a step; mixup mixes them in pairs."""
    lr: Number[Positive] = 1e-3
    """Peak learning rate at 256 images a step; it is scaled to the batch."""
    layer_decay: Number[Share] = 0.75
    """The learning rate of a layer over that of the next (MAE: 0.75); 1 for the same in all."""
    mixup: Number[NonNegative] = 0.8
    """Alpha of mixup (MAE: 0.8); 0 for none."""
    cutmix: Number[NonNegative] = 1.0
    """Alpha of CutMix (MAE: 1.0); 0 for none."""
    preset: Literal["own", "none", "light1", "light2", "medium1", "medium2", "strong1", "strong2"] = "own"
    """AugReg's mixup and RandAugment (arXiv 2106.10270), instead of mixup, cutmix and smoothed labels; own: those."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """The optimiser; AugReg fine-tunes by sgd with momentum 0.9, at 0.015 and 0.005 (0.03 and 0.01 for 512 images)."""
    weight_decay: Number[NonNegative] = 0.05
    """Weight decay (MAE: 0.05; AugReg: 0.1 or 0.03)."""
    drop: Number[Rate] = 0.0
    """Dropout and, in the last block, stochastic depth (AugReg: 0 or 0.1)."""
    diversify: Number[NonNegative] = 0.0
    """Weight of patch diversification (arXiv 2104.12753: 1); after CutMix patches answer for their own image."""
    distill: Literal["none", "hard", "soft"] = "none"
    """Learn a teacher's word too, by the distillation token of a *_distilled network (DeiT, arXiv 2012.12877)."""
    teacher: Text = "none"
    """A run or a file of weights, the teacher of distill; a linear classifier on it learns train before."""

    def score(self, job: Job) -> Outcome:
        """Top-1 in percent of the network after the last step."""
        from ssl_vit.eval.finetune import score

        return score(job, self)
