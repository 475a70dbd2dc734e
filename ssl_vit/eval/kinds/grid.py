"""The kind of score "grid"; ``ssl_vit/eval/grid.py`` computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ssl_vit.eval.kind import AtLeastOne, FeatureKind
from ssl_vit.eval.kinds import register_kind

if TYPE_CHECKING:
    from ssl_vit.eval.job import Job, Outcome


Depth = Annotated[int, Field(ge=1, le=1000)]


@register_kind("grid")
class Grid(FeatureKind):
    """Linear classifiers over layers, pooling and learning rates compete on a part of train (DINOv2)."""

    depths: AtLeastOne[Depth] = (1, 4)
    """How many of the last layers are taken together; each is tried (DINOv2, arXiv 2304.07193: 1 and 4)."""

    def score(self, job: Job) -> Outcome:
        """Top-1 in percent of the choice that is best on a part of train."""
        from ssl_vit.eval.grid import score

        return score(job, self.depths)
