"""The kind of score "augmented"; ``ssl_vit/eval/augmented.py`` computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssl_vit.eval.kind import AtLeastOne, FeatureKind, Number
from ssl_vit.eval.kinds import register_kind
from ssl_vit.settings import Count, Positive

if TYPE_CHECKING:
    from ssl_vit.eval.job import Job, Outcome


@register_kind("augmented")
class Augmented(FeatureKind):
    """A linear classifier sees another crop in every epoch, as DINO's and MoBY's papers score."""

    epochs: Number[Count] = 100
    """Passes over train (DINO, arXiv 2104.14294, and MoBY, 2105.04553: 100)."""
    batch: Number[Count] = 256
    """Images a step."""
    lr: AtLeastOne[Positive] = (0.001, 0.01, 0.1)
    """Learning rates at 256 images a step (DINO's at that size: 0.001); a single one is not chosen but taken."""

    def score(self, job: Job) -> Outcome:
        """Top-1 in percent; the learning rate is chosen on a part of train."""
        from ssl_vit.eval.augmented import score

        return score(job, self)
