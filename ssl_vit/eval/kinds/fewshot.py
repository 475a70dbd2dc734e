"""The kind of score "fewshot"; ``ssl_vit/eval/fewshot.py`` computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ssl_vit.eval.kind import FeatureKind, Number, Several
from ssl_vit.eval.kinds import register_kind
from ssl_vit.settings import Count

if TYPE_CHECKING:
    from ssl_vit.eval.job import Job, Outcome


Percent = Annotated[float, Field(gt=0, lt=100)]
Draws = Annotated[int, Field(ge=2)]


@register_kind("fewshot")
class Fewshot(FeatureKind):
    """Logistic regression learns from a few labels a class, with an interval over draws."""

    shots: Several[Count] = (1, 5, 10)
    """Labelled images of each class."""
    share: Several[Percent] = ()
    """Labelled part of train, in percent, beside the shots."""
    draws: Number[Draws] = 5
    """Times that the labelled images are drawn, for the mean and its 95 % interval."""

    def score(self, job: Job) -> Outcome:
        """The mean top-1 in percent and half its interval, by shots and shares."""
        from ssl_vit.eval.fewshot import score

        return score(job, self.shots, self.share, self.draws)
