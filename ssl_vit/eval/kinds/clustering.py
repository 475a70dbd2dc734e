"""The kind of score "clustering"; ``ssl_vit/eval/clustering.py`` computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from ssl_vit.eval.kind import VAL, FeatureKind
from ssl_vit.eval.kinds import register_kind

if TYPE_CHECKING:
    from ssl_vit.eval.job import Job, Outcome


@register_kind("clustering")
class Clustering(FeatureKind):
    """k-means groups val, which is held against its labels: NMI and ARI."""

    folders: ClassVar[Mapping[str, str]] = VAL

    def score(self, job: Job) -> Outcome:
        """NMI and ARI, both times 100."""
        from ssl_vit.eval.clustering import score

        return score(job)
