"""The kind of score "sharpness"; ``ssl_vit/run/surface.py`` computes it, with the method of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from ssl_vit.eval.kind import Number, ScoreKind, Seed
from ssl_vit.eval.kinds import register_kind
from ssl_vit.settings import Count, Positive

if TYPE_CHECKING:
    from ssl_vit.eval.job import Job, Outcome

Places = Annotated[int, Field(ge=3, le=101)]


@register_kind("sharpness")
class Sharpness(ScoreKind):
    """How sharp a run's loss is at its last weights: largest curvature, and the loss around them, without labels."""

    folders: ClassVar[Mapping[str, str]] = {"data": "images, with labels or without"}
    unprinted: ClassVar[tuple[str, ...]] = ("surface",)

    images: Number[Count] = 128
    """Images whose loss is looked at, in batches of the run's size."""
    iterations: Number[Count] = 30
    """Most steps of Lanczos' iteration for the largest eigenvalue of the Hessian."""
    span: Number[Positive] = 1.0
    """How far the two directions are followed; 1 is as far as the weights are from 0, filter by filter
    (arXiv 1712.09913)."""
    places: Number[Places] = 11
    """Places along each of the two directions, whose square is drawn by --figure."""
    seed: Number[Seed] = 0
    """Seed of the directions."""

    def score(self, job: Job) -> Outcome:
        """The largest eigenvalue, the loss, and the loss along two random directions."""
        from ssl_vit.run.surface import score

        return score(job, self)
