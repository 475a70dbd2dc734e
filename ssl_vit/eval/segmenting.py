"""Segmenters from scratch and from the weights: what they learn from, their mean IoU and their panoptic quality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.data.decode import image_size
from ssl_vit.data.measure import Files
from ssl_vit.data.readers import worker_count
from ssl_vit.data.scenes import scenes_in_order
from ssl_vit.data.segment_scenes import SegmentDataset, SegmentScene
from ssl_vit.data.segments import NOWHERE, SegmentSource
from ssl_vit.data.values import Pixels
from ssl_vit.detectors.learner import Learner
from ssl_vit.detectors.losses import solver
from ssl_vit.errors import RunFailed, UserError
from ssl_vit.eval.detection_data import canvas
from ssl_vit.eval.job import Job, Outcome
from ssl_vit.eval.kinds.segmentation import Segmentation
from ssl_vit.eval.pairs import EXAMPLES, Trial, composed
from ssl_vit.eval.panoptic_quality import PanopticQuality
from ssl_vit.eval.protocol import Side
from ssl_vit.eval.segmentation import iou_summary
from ssl_vit.eval.segmentation_data import known_by_segments, open_segments
from ssl_vit.progress import progress
from ssl_vit.segmenters.build import build_segmenter
from ssl_vit.segmenters.segmenter import Segmenter
from ssl_vit.segmenters.table import SEGMENTERS, SegmenterName

RATES: dict[SegmenterName, float] = {"fpt": 2e-4, "maskformer": 2e-4, "upernet": 1e-3}
MEASURED = 1000  # images whose sizes decide that of the canvas
DRAWN = 160  # pixels a side of the pictures that are kept


@dataclass(frozen=True)
class SegmentationTrial(Trial[SegmentScene]):
    """A trial of segmenters holds their segments too."""

    metric: ClassVar[str] = "mIoU"

    segmenter: SegmenterName
    train: SegmentSource
    val: SegmentSource
    pixels: Pixels

    @property
    def images(self) -> int:
        """So many images can be learnt from."""
        return len(self.train)

    def begin(self, arm: str, seed: int) -> Segmenter:
        """A new segmenter begins with random weights or with those that are scored; its head is the same in both."""
        backbone = self.backbone(arm, seed)
        torch.manual_seed(seed)
        return build_segmenter(self.segmenter, backbone, self.train.things, self.size).to(self.job.device)

    def training(self, seed: int) -> SegmentDataset:
        """Train's images with their segments."""
        return SegmentDataset(self.train, self.size, training=True, seed=seed, pixels=self.pixels)

    def scored(self, learner: Learner[SegmentScene]) -> dict[str, Any]:
        """The segmenter is scored on val, at each image's own size.

        "scores" in percent, "examples" of what was found, and how many images were "read".
        """
        assert isinstance(learner, Segmenter)
        data = SegmentDataset(self.val, self.size, training=False, pixels=self.pixels)
        workers = worker_count(None, len(data))
        loader = scenes_in_order(data, batch_size=self.batch, workers=workers, max_bad=self.max_bad)
        classes = len(self.train.classes)
        table, examples, read = np.zeros((classes, classes), np.int64), list[dict[str, Any]](), 0
        quality = PanopticQuality(self.train.things) if self.val.panoptic and learner.finds_segments else None
        with torch.inference_mode(), progress("scoring", len(data)) as advance:
            for scenes in loader:
                for scene, one in zip(scenes, learner.segment(scenes) if scenes else [], strict=True):
                    assert scene.truth is not None
                    true, found = scene.truth.classes(), one.classes.cpu().numpy()
                    table += _counted(true, found, classes)
                    if quality is not None:
                        assert one.segments is not None
                        assert one.labels is not None
                        quality.add(scene.truth, one.segments.cpu().numpy(), one.labels.cpu().numpy())
                    if len(examples) < EXAMPLES:
                        examples.append(
                            {"file": self.val.path(scene.index), "true": _small(true), "found": _small(found)}
                        )
                    read += 1
                advance(self.batch)
        if not table.any():
            raise RunFailed(
                f"--val {self.job.path('val')}: no image with pixels that count could be read; restore them"
            )
        scores = iou_summary(table) | ({} if quality is None else quality.scores())
        return {"scores": scores, "examples": examples, "read": read}


def score(job: Job, asked: Segmentation) -> Outcome:
    """The kind "segmentation" with a head that learns: mIoU from scratch, from the weights, and the difference."""
    trial = plan(job, asked)
    settings = {"head": trial.segmenter, "classes_by_name": list(trial.train.classes), "ignore": list(asked.ignore)}
    settings |= trial.settings(asked)
    runs = trial.runs(asked, settings)
    read, val = runs["scratch", asked.share[0]][0]["read"], trial.val
    job.sides["val"] = job.sides["val"]._replace(images=read, left_out=len(val.left_out) + len(val) - read)
    examples = runs["weights", max(asked.share)][0]["examples"]
    return Outcome(trial.summary(asked, runs), settings, more={"examples": examples})


def plan(job: Job, asked: Segmentation) -> SegmentationTrial:
    """The plan is what the runs share. All that a user can have wrong is found here, before the first step.

    Raises:
        UserError: segments, images or settings that don't fit each other or the backbone.
    """
    [head] = asked.head
    name = next(each for each in SEGMENTERS if each == head)
    train, val = (
        open_segments(job.path(side), images, side, asked.ignore, asked.max_bad)
        for side, images in (("train", asked.train_images), ("val", asked.val_images))
    )
    if len(train.counts()) < 2:
        raise UserError(f"--train {job.path('train')}: {len(train.counts())} class to segment; give two or more")
    val = val.numbered_as(train)
    job.classes = len(train.classes)
    for side, source in (("train", train), ("val", val)):
        job.sides[side] = Side(len(source), len(source.left_out), *known_by_segments(source))
    sizes = [image_size(train.path(index)) for index in range(min(MEASURED, len(train)))]
    assert isinstance(job.backbone, AdaptedBackbone)  # the one adapter
    wide = canvas(job.backbone.info, sizes, asked.size)
    segmenter = build_segmenter(name, composed(asked, job.backbone), train.things, wide)
    _check_batch(segmenter, asked, len(train))
    if segmenter.finds_segments:
        solver()  # which matches queries: asked for before any training
    rate = RATES[name] if asked.lr == "auto" else asked.lr
    slower = rate if asked.backbone_lr == "auto" else asked.backbone_lr
    pixels = job.pixels_of(*(Files([source.path(i) for i in range(len(source))]) for source in (train, val)))
    shared = (
        job,
        name,
        wide,
        asked.batch,
        rate,
        slower,
        asked.max_bad,
        None,
        (asked.composite, asked.composite_shared),
    )
    return SegmentationTrial(*shared, name, train, val, pixels)


def _check_batch(segmenter: Segmenter, asked: Segmentation, images: int) -> None:
    """UserError where steps have too few images."""
    fewest = min(max(1, round(part / 100 * images)) for part in asked.share)
    if asked.batch < segmenter.least:
        raise UserError(
            f"--batch {asked.batch}: batch norm needs {segmenter.least} images a step; give --batch {segmenter.least}"
        )
    if fewest < segmenter.least:
        raise UserError(
            f"--share {min(asked.share):g}: {fewest} of {images} images, batch norm needs {segmenter.least} a step; "
            "give a larger share, or --head maskformer"
        )


def _counted(true: NDArray[np.int64], found: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Pixels by true and by found class [C, C]; those that don't count are left out."""
    counted = true != NOWHERE
    cells = true[counted] * classes + found[counted]
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def _small(classes: NDArray[np.int64]) -> dict[str, Any]:
    """A small picture of the classes of an image, as run lengths: plain values."""
    step = max(1, -(-max(classes.shape) // DRAWN))
    picture = classes[::step, ::step]
    flat = picture.ravel()
    starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))
    lengths = np.diff(np.append(starts, flat.size))
    return {"size": list(picture.shape), "runs": np.stack([flat[starts], lengths], 1).tolist()}
