"""The kind of score "segmentation"; ``ssl_vit/eval/segmentation.py`` computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from ssl_vit.eval.kind import FeatureKind, Several
from ssl_vit.eval.kinds import register_kind

if TYPE_CHECKING:
    from ssl_vit.eval.job import Job, Outcome


ClassNumber = Annotated[int, Field(ge=0, le=65535)]


@register_kind("segmentation")
class Segmentation(FeatureKind):
    """Frozen patches are classified linearly and by the nearest patches: mIoU of the masks."""

    folders: ClassVar[Mapping[str, str]] = {
        "train": "images with masks to learn from, as VOC's, ADE20K's, or images/ and masks/",
        "val": "images with masks to score on",
    }

    ignore: Several[ClassNumber] = (255,)
    """Numbers in the masks whose pixels don't count (Pascal VOC: 255); an empty text where all count, as in masks of 0
    and 255."""

    def score(self, job: Job) -> Outcome:
        """mIoU and pixel accuracy in percent, of both classifiers."""
        from ssl_vit.eval.segmentation import score

        return score(job, self.ignore)
