"""The kind of score "labelfree"; ``ssl_vit/eval/labelfree.py`` computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from ssl_vit.eval.kind import FeatureKind, Number
from ssl_vit.eval.kinds import register_kind
from ssl_vit.settings import Count

if TYPE_CHECKING:
    from ssl_vit.eval.job import Job, Outcome


Views = Annotated[int, Field(ge=2)]


@register_kind("labelfree")
class LabelFree(FeatureKind):
    """Features are measured without labels: effective rank, LiDAR, alignment, uniformity, shared neighbours."""

    folders: ClassVar[Mapping[str, str]] = {"data": "images, with labels or without"}

    k: Number[Count] = 10
    """Nearest neighbours of an image that its two views should share."""
    views: Number[Views] = 4
    """Random crops of every image, for LiDAR (arXiv 2312.04000)."""

    def score(self, job: Job) -> Outcome:
        """Five numbers, each explained where it is computed."""
        from ssl_vit.eval.labelfree import score

        return score(job, self.k, self.views)
