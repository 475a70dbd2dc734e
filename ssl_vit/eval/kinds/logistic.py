"""The kind of score "logistic"; ``ssl_vit/eval/logistic.py`` computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssl_vit.eval.kind import FeatureKind
from ssl_vit.eval.kinds import register_kind

if TYPE_CHECKING:
    from ssl_vit.eval.job import Job, Outcome


@register_kind("logistic")
class Logistic(FeatureKind):
    """Logistic regression finds its optimum by L-BFGS; its C is chosen on a part of train."""

    def score(self, job: Job) -> Outcome:
        """Top-1 in percent."""
        from ssl_vit.eval.logistic import score

        return score(job)
