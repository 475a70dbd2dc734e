"""The kind of score "retrieval"; ``ssl_vit/eval/retrieval.py`` computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssl_vit.eval.kind import FeatureKind, Several
from ssl_vit.eval.kinds import register_kind
from ssl_vit.settings import Count

if TYPE_CHECKING:
    from ssl_vit.eval.job import Job, Outcome


@register_kind("retrieval")
class Retrieval(FeatureKind):
    """Each image of val ranks train by similarity: mAP and recall@k."""

    k: Several[Count] = (1, 5, 10)
    """How many of the first images of a ranking are looked at for recall@k."""

    def score(self, job: Job) -> Outcome:
        """mAP and recall@k in percent."""
        from ssl_vit.eval.retrieval import score

        return score(job, self.k)
