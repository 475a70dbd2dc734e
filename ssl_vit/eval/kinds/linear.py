"""The kind of score "linear"; ``ssl_vit/eval/linear.py`` computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssl_vit.eval.kind import FeatureKind
from ssl_vit.eval.kinds import register_kind

if TYPE_CHECKING:
    from ssl_vit.eval.job import Job, Outcome


@register_kind("linear")
class Linear(FeatureKind):
    """A linear classifier learns by SGD; its learning rate is chosen on a part of train."""

    def score(self, job: Job) -> Outcome:
        """Top-1 in percent."""
        from ssl_vit.eval.linear import score

        return score(job)
