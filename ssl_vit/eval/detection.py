"""Detectors from scratch and from the weights: what they learn from, and their mean average precision."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.checkpoints.reader import digest
from ssl_vit.data.annotations import Annotations
from ssl_vit.data.detection import DetectionDataset, Scene
from ssl_vit.data.readers import worker_count
from ssl_vit.data.scenes import scenes_in_order
from ssl_vit.data.values import Pixels
from ssl_vit.detectors.build import build_finder
from ssl_vit.detectors.detector import Detections
from ssl_vit.detectors.files import detector_of, load_detector
from ssl_vit.detectors.finder import Finder, SetFinder
from ssl_vit.detectors.learner import Learner
from ssl_vit.detectors.table import DetectorName
from ssl_vit.errors import RunFailed
from ssl_vit.eval.detection_data import canvas, known_by_boxes, numbered_alike, open_boxes
from ssl_vit.eval.job import Job, Outcome
from ssl_vit.eval.kinds.detection import Detection
from ssl_vit.eval.mean_ap import MaskPrecision, check_installed, mean_average_precision
from ssl_vit.eval.pairs import EXAMPLES, Trial, composed
from ssl_vit.eval.protocol import Side
from ssl_vit.progress import progress

RATE, SET_RATE = 1e-3, 2e-4  # learning rates of torchvision's detectors and of those of queries
SURE = 0.5  # least score of a box that is drawn
PLACES = 40  # that a query looked at, in the picture

log = logging.getLogger("ssl_vit")


@dataclass(frozen=True)
class DetectionTrial(Trial[Scene]):
    """A trial of detectors holds their boxes too."""

    metric: ClassVar[str] = "mAP"

    detector: DetectorName
    train: Annotations
    val: Annotations
    masks: bool

    @property
    def pixels(self) -> Pixels:
        """How values of the images become 8 bits."""
        return self.job.pixels_of(self.train, self.val)

    @property
    def images(self) -> int:
        """So many images can be learnt from."""
        return len(self.train)

    def begin(self, arm: str, seed: int) -> Finder:
        """A new detector begins with random weights or with those that are scored; its head is the same in both."""
        backbone, classes = self.backbone(arm, seed), len(self.train.classes)
        torch.manual_seed(seed)
        if self.pretrained is None:
            return build_finder(self.detector, backbone, classes, self.size).to(self.job.device)
        detector = load_detector(self.pretrained, classes)
        if arm != "weights":  # of the same sizes
            detector = type(detector)(backbone, classes, **detector.settings)
        detector.freeze_norms(False)  # as the table's
        return SetFinder(detector, backbone.info).to(self.job.device)

    def training(self, seed: int) -> DetectionDataset:
        """Train's images with their boxes."""
        return DetectionDataset(self.train, self.size, training=True, seed=seed, masks=self.masks, pixels=self.pixels)

    def scored(self, learner: Learner[Scene]) -> dict[str, Any]:
        """The detector is scored on val, in pixels of the original images; masks are compared on the canvas.

        "scores" in percent, "examples" of what was found, and how many images were "read".
        """
        assert isinstance(learner, Finder)
        data = DetectionDataset(self.val, self.size, training=False, masks=self.masks, pixels=self.pixels)
        workers = worker_count(None, len(data))
        loader = scenes_in_order(data, batch_size=self.batch, workers=workers, max_bad=self.max_bad)
        found, seen, examples = list[Detections](), list[int](), list[dict[str, Any]]()
        masks = MaskPrecision() if self.masks else None
        with torch.inference_mode(), progress("scoring", len(data)) as advance:
            for scenes in loader:
                ask = learner.look if len(examples) < EXAMPLES else learner.find
                for scene, one in zip(scenes, ask(scenes) if scenes else [], strict=True):
                    if masks is not None:
                        masks.add(one, self.val.objects[scene.index], _visible(scene))
                    found.append(_original(one, scene))
                    seen.append(scene.index)
                    if len(examples) < EXAMPLES:
                        examples.append(self._example(found[-1], scene.index))
                advance(self.batch)
        if not any((~self.val.objects[index].crowd).any() for index in seen):
            raise RunFailed(f"--val {self.job.path('val')}: no image with a box to find could be read; restore them")
        boxes = mean_average_precision(found, [self.val.objects[index] for index in seen])
        scores = {"mAP": boxes.map, "mAP50": boxes.map50, "mAP75": boxes.map75}
        if masks is not None:
            outlined = masks.scores()
            scores |= {"mask_mAP": outlined.map, "mask_mAP50": outlined.map50, "mask_mAP75": outlined.map75}
        return {"scores": scores, "examples": examples, "read": len(seen)}

    def _example(self, found: Detections, index: int) -> dict[str, Any]:
        """Plain values, for the picture."""
        objects, classes, sure = self.val.objects[index], self.val.classes, found.scores > SURE
        said = zip(found.labels[sure].tolist(), found.scores[sure].tolist(), strict=True)
        return {
            "file": self.val.path(index),
            "true": objects.boxes.tolist(),
            "true_names": [classes[label] for label in objects.labels.tolist()],
            "found": found.boxes[sure].tolist(),
            "found_names": [f"{classes[label]} {score:.2f}" for label, score in said],
            "looks": [] if found.looks is None else [_heaviest(each) for each in found.looks[sure]],
        }


def score(job: Job, asked: Detection) -> Outcome:
    """The kind "detection" gives mAP from scratch, from the weights, and the difference, for each share of the labels.

    Where the run has pretrained the detector too (DETReg), also from its backbone's weights alone.
    """
    trial = plan(job, asked)
    settings = {"detector": asked.detector} | trial.settings(asked)
    if trial.pretrained is not None:
        settings["pretrained_detector"] = digest(trial.pretrained)
    runs = trial.runs(asked, settings)
    read, val = runs["scratch", asked.share[0]][0]["read"], trial.val
    job.sides["val"] = job.sides["val"]._replace(images=read, left_out=val.left_out + len(val) - read)
    examples = runs["weights", max(asked.share)][0]["examples"]
    return Outcome(trial.summary(asked, runs), settings, more={"examples": examples})


def plan(job: Job, asked: Detection) -> DetectionTrial:
    """The plan is what the runs share. All that a user can have wrong is found here, before the first step.

    Raises:
        UserError: boxes, images or settings that don't fit each other or the backbone.
    """
    check_installed()
    masks = asked.detector == "mask_rcnn"
    train, val = (
        open_boxes(job.path(side), images, side, outlined=masks, max_bad=asked.max_bad)
        for side, images in (("train", asked.train_images), ("val", asked.val_images))
    )
    val = numbered_alike(val, train)
    job.classes = len(train.classes)
    for side, boxes in (("train", train), ("val", val)):
        job.sides[side] = Side(len(boxes), boxes.left_out, *known_by_boxes(boxes))
    wide = canvas(job.backbone.info, train.sizes, asked.size)
    assert isinstance(job.backbone, AdaptedBackbone)  # the one adapter
    finder = build_finder(asked.detector, composed(asked, job.backbone), job.classes, wide)
    rate = (SET_RATE if isinstance(finder, SetFinder) else RATE) if asked.lr == "auto" else asked.lr
    slower = rate if asked.backbone_lr == "auto" else asked.backbone_lr
    pretrained = None if asked.composite > 1 else _pretrained(job.weights, asked.detector)
    if asked.composite > 1 and detector_of(job.weights) is not None:
        log.warning("--composite %d: the backbone's weights alone are scored, not the run's detector", asked.composite)
    composite = (asked.composite, asked.composite_shared)
    shared = (job, asked.detector, wide, asked.batch, rate, slower, asked.max_bad, pretrained, composite)
    return DetectionTrial(*shared, asked.detector, train, val, masks)


def _pretrained(run: Path, detector: DetectorName) -> Path | None:
    """The detector that a run holds, if it is of the kind that is asked for; said where it is not."""
    file = detector_of(run)
    if file is None or (kind := load_detector(file).name) == detector:
        return file
    log.warning(
        "%s: a pretrained %s, which %s can't begin with: its backbone's weights alone are scored; --detector %s",
        file,
        kind,
        detector,
        kind,
    )
    return None


def _original(found: Detections, scene: Scene) -> Detections:
    """In pixels of the image as it was, without masks."""
    x, y = scene.scale
    looks = None if found.looks is None else found.looks.cpu() / torch.tensor([x, y, 1.0])
    boxes = found.boxes.cpu() / torch.tensor([x, y, x, y])
    return Detections(boxes, found.scores.cpu(), found.labels.cpu(), looks=looks)


def _heaviest(looks: torch.Tensor) -> list[list[float]]:
    """Of the places [P, 3] that a query looked at."""
    heaviest: list[list[float]] = looks[looks[:, 2].argsort(descending=True)[:PLACES]].tolist()
    return heaviest


def _visible(scene: Scene) -> torch.Tensor:
    """Masks [n, h, w] without the canvas beside the image."""
    assert scene.masks is not None
    return scene.masks[:, : scene.extent[0], : scene.extent[1]]
