"""The kind of score "knn"; ``ssl_vit/eval/knn.py`` computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from ssl_vit.eval.kind import AtLeastOne, FeatureKind, number
from ssl_vit.eval.kinds import register_kind
from ssl_vit.settings import Count

if TYPE_CHECKING:
    from ssl_vit.eval.job import Job, Outcome


def _plain(value: Any) -> Any:
    return float("inf") if value == "plain" else number(value)


Temperature = Annotated[float, Field(gt=0, allow_inf_nan=True), BeforeValidator(_plain)]


@register_kind("knn")
class Knn(FeatureKind):
    """The nearest images of train vote, in cosine similarity (DINO, arXiv 2104.14294)."""

    k: AtLeastOne[Count] = (10, 20, 100, 200)
    """Neighbours that vote (DINO: 10, 20, 100 and 200); a set with fewer images has all of them vote."""
    temperature: AtLeastOne[Temperature] = (0.07,)
    """Temperature of the votes, exp(similarity / temperature) each (DINO: 0.07), or plain, where each counts one; the
    plain vote is always added."""

    def score(self, job: Job) -> Outcome:
        """Top-1 in percent by k and temperature."""
        from ssl_vit.eval.knn import score

        return score(job, self.k, self.temperature)
