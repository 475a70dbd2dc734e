"""The kind of score "budget"; ``ssl_vit/eval/budget.py`` computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ssl_vit.eval.kind import Number, ScoreKind, Seed, Several
from ssl_vit.eval.kinds import register_kind
from ssl_vit.settings import Positive

if TYPE_CHECKING:
    from ssl_vit.eval.job import Job, Outcome


Share = Annotated[float, Field(gt=0, le=1)]


@register_kind("budget")
class Budget(ScoreKind):
    """Accuracy is weighed against multiply-adds and milliseconds, of networks that can do with less."""

    keep: Several[Share] = ()
    """Shares of the patches that each stage keeps, of a network that drops patches; without, 0.5, 0.6, …, 1."""
    gmacs: Several[Positive] = ()
    """Mean 1e9 multiply-adds an image, of a network with exits; without, seven from the first exit's to the last's."""
    seed: Number[Seed] = 0
    """Seed of the part of train on which classifiers and thresholds are chosen."""

    def score(self, job: Job) -> Outcome:
        """Top-1 in percent, 1e9 multiply-adds and milliseconds at batches of 1 and 32, at several settings."""
        from ssl_vit.eval.budget import score

        return score(job, self)
