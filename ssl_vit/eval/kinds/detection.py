"""The kind of score "detection"; ``ssl_vit/eval/detection.py`` computes it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from ssl_vit.detectors.table import DetectorName
from ssl_vit.eval.kind import AtLeastOne, Number, ScoreKind, Seed
from ssl_vit.eval.kinds import register_kind
from ssl_vit.settings import MAX_BAD, Count, Fraction, Positive

if TYPE_CHECKING:
    from ssl_vit.eval.job import Job, Outcome

_BOXES = "with boxes: a COCO .json, a Pascal VOC folder or a YOLO folder"


def _path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _different(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("different numbers")
    return seeds


AutoWord = Literal["auto"]
Seeds = Annotated[AtLeastOne[Seed], AfterValidator(_different)]
Percent = Annotated[float, Field(gt=0, le=100)]
Text = Annotated[str, Field(min_length=1), BeforeValidator(_path)]


@register_kind("detection")
class Detection(ScoreKind):
    """A detector learns from scratch and from the weights, over several seeds: mAP, and which is better."""

    folders: ClassVar[Mapping[str, str]] = {
        "train": f"images {_BOXES}",
        "val": "images with boxes to score on, likewise",
    }
    unprinted: ClassVar[tuple[str, ...]] = ("examples",)

    detector: DetectorName = "faster_rcnn"
    """The detector that is trained on the backbone."""
    seeds: Seeds = (0, 1, 2)
    """Seeds; each is one run from scratch and one from the weights."""
    share: AtLeastOne[Percent] = (100.0,)
    """Part of train's images that is learnt from, in percent; each is scored."""
    steps: Number[Count] | AutoWord = "auto"
    """Steps of a run; auto: 24 passes over its images, 500 to 20,000 steps."""
    size: Number[Count] | AutoWord = "auto"
    """Side of the canvas that images are put on, in pixels; auto: as the images are, 640 at most."""
    batch: Number[Count] = 8
    """Images a step."""
    lr: Number[Positive] | AutoWord = "auto"
    """Peak learning rate of the detector; auto: 1e-3, of a detector of queries 2e-4."""
    backbone_lr: Number[Positive] | AutoWord = "auto"
    """Peak learning rate of the backbone in both; auto: as --lr."""
    train_images: Text = "auto"
    """Folder of the images of a COCO .json given as --train; auto: that of the file."""
    val_images: Text = "auto"
    """Likewise, of --val."""
    max_bad: Number[Fraction] = MAX_BAD
    """Share of the annotated images that may be missing or unreadable, of the boxes that may be wrong, and of the
    objects that may lack an outline where the detector needs one; they are named and left out."""

    def score(self, job: Job) -> Outcome:
        """mAP from scratch, from the weights, and the difference, by share."""
        from ssl_vit.eval.detection import score

        return score(job, self)
