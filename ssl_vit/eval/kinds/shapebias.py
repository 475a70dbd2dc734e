"""The kind of score "shapebias"; ``ssl_vit/eval/shapebias.py`` computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from ssl_vit.eval.kind import TRAIN, FeatureKind
from ssl_vit.eval.kinds import register_kind

if TYPE_CHECKING:
    from ssl_vit.eval.job import Job, Outcome


@register_kind("shapebias")
class ShapeBias(FeatureKind):
    """Images have one class's shape and another's texture: which of them decides?"""

    folders: ClassVar[Mapping[str, str]] = {
        **TRAIN,
        "conflict": "sub-folders by shape, file names that end in -TEXTURE and a number (arXiv 1811.12231)",
    }

    def score(self, job: Job) -> Outcome:
        """The share of decisions for shape and for texture, in percent."""
        from ssl_vit.eval.shapebias import score

        return score(job)
