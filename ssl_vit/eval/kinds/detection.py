"""The kind of score "detection"; ``ssl_vit/eval/detection.py`` computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from ssl_vit.detectors.table import DetectorName
from ssl_vit.eval.kind import Number, ScoreKind
from ssl_vit.eval.kinds import register_kind
from ssl_vit.eval.pair_kind import PairOptions
from ssl_vit.settings import MAX_BAD, Fraction

if TYPE_CHECKING:
    from ssl_vit.eval.job import Job, Outcome

_BOXES = "with boxes: a COCO .json, a Pascal VOC folder or a YOLO folder"


@register_kind("detection")
class Detection(PairOptions, ScoreKind):
    """A detector learns from scratch and from the weights, over several seeds: mAP, and which is better."""

    folders: ClassVar[Mapping[str, str]] = {
        "train": f"images {_BOXES}",
        "val": "images with boxes to score on, likewise",
    }
    unprinted: ClassVar[tuple[str, ...]] = ("examples",)

    detector: DetectorName = "faster_rcnn"
    """The detector that is trained on the backbone."""
    max_bad: Number[Fraction] = MAX_BAD
    """Share of the annotated images that may be missing or unreadable, of the boxes that may be wrong, and of the
    objects that may lack an outline where the detector needs one; they are named and left out."""

    def score(self, job: Job) -> Outcome:
        """mAP from scratch, from the weights, and the difference, by share."""
        from ssl_vit.eval.detection import score

        return score(job, self)
