"""Does pretraining help a detector? The same detector from scratch and from the weights, over several seeds."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.registry import create_backbone
from ssl_vit.checkpoints.reader import digest
from ssl_vit.data.annotations import Annotations
from ssl_vit.data.detection import JITTER, DetectionDataset, Scene, scenes_in_order, share_of
from ssl_vit.data.readers import worker_count
from ssl_vit.data.values import Pixels
from ssl_vit.detectors.build import build_finder
from ssl_vit.detectors.detector import Detections
from ssl_vit.detectors.files import detector_of, load_detector
from ssl_vit.detectors.finder import Finder, SetFinder
from ssl_vit.detectors.table import DetectorName
from ssl_vit.errors import RunFailed
from ssl_vit.eval.detection_data import canvas, known_by_boxes, numbered_alike, open_boxes
from ssl_vit.eval.detection_loop import CLIP, WARMUP, WEIGHT_DECAY, DetectorRecipe, train_detector
from ssl_vit.eval.detection_summary import gain_summary
from ssl_vit.eval.job import Job, Outcome
from ssl_vit.eval.kinds.detection import Detection
from ssl_vit.eval.mean_ap import MaskPrecision, check_installed, mean_average_precision
from ssl_vit.eval.protocol import Side
from ssl_vit.eval.unfinished import Unfinished
from ssl_vit.progress import progress

WORDS = {"scratch": "from scratch", "backbone": "from the backbone's weights", "weights": "from the weights"}
"""With what a detector begins; "backbone" only where more than the backbone was pretrained (DETReg)."""
PASSES, LEAST, LONGEST = 24, 500, 20_000  # what "auto" makes of steps
RATE, SET_RATE = 1e-3, 2e-4  # learning rates of torchvision's detectors and of those of queries
EXAMPLES, SURE = 8, 0.5  # images of val in the picture, and the least score of a box that is drawn
PLACES = 40  # that a query looked at, in the picture

log = logging.getLogger("ssl_vit")


@dataclass(frozen=True)
class Trial:
    """A trial holds all that the runs of a comparison share."""

    job: Job
    detector: DetectorName
    train: Annotations
    val: Annotations
    size: int
    batch: int
    lr: float
    backbone_lr: float
    masks: bool
    max_bad: float
    pretrained: Path | None = None  # the file of a detector of this kind that was pretrained with the backbone

    @property
    def pixels(self) -> Pixels:
        """How values of the images become 8 bits."""
        return self.job.pixels_of(self.train, self.val)

    @property
    def arms(self) -> list[str]:
        """The arms are what is compared: the ways in which a detector begins."""
        return [arm for arm in WORDS if arm != "backbone" or self.pretrained is not None]

    def begin(self, arm: str, seed: int) -> Finder:
        """A new detector begins with random weights or with those that are scored; its head is the same in both."""
        backbone, classes = self._backbone(arm, seed), len(self.train.classes)
        torch.manual_seed(seed)
        if self.pretrained is None:
            return build_finder(self.detector, backbone, classes, self.size).to(self.job.device)
        detector = load_detector(self.pretrained, classes)
        if arm != "weights":  # of the same sizes
            detector = type(detector)(backbone, classes, **detector.settings)
        detector.freeze_norms(False)  # as the table's
        return SetFinder(detector, backbone.info).to(self.job.device)

    def _backbone(self, arm: str, seed: int) -> AdaptedBackbone:
        scored = self.job.backbone
        assert isinstance(scored, AdaptedBackbone)
        if arm != "scratch":
            return copy.deepcopy(scored)
        args = {key: value for key, value in scored.model_args.items() if key != "img_size"}
        torch.manual_seed(seed)
        fresh = create_backbone(scored.info.name, image_size=scored.info.size, model_args=args)
        fresh.info = scored.info  # the same mean and deviation of the images
        return fresh

    def run(self, arm: str, share: float, seed: int, steps: int | str, unfinished: Unfinished) -> dict[str, Any]:
        """Train and score one detector; the result has its scores, and what it finds in a few images."""
        name = f"{share:g}-{arm}-{seed}"
        if name not in unfinished.done:
            chosen = share_of(len(self.train), share / 100, seed)
            recipe = DetectorRecipe(
                _steps(steps, len(chosen), self.batch), self.batch, self.lr, self.backbone_lr, seed, self.max_bad
            )
            data = DetectionDataset(
                self.train, self.size, training=True, seed=seed, masks=self.masks, pixels=self.pixels
            )
            finder = self.begin(arm, seed)
            title = f"{self.detector} {WORDS[arm]}, {share:g} %, seed {seed}"
            train_detector(finder, data, chosen, recipe, checkpoint=unfinished.checkpoint(name), title=title)
            result = self.scored(finder)
            log.info("%s: mAP %.2f, mAP50 %.2f", title, result["scores"]["mAP"], result["scores"]["mAP50"])
            unfinished.finish(name, result)
        found: dict[str, Any] = unfinished.done[name]
        return found

    def scored(self, finder: Finder) -> dict[str, Any]:
        """The detector is scored on val, in pixels of the original images; masks are compared on the canvas.

        "scores" in percent, "examples" of what was found, and how many images were "read".
        """
        data = DetectionDataset(self.val, self.size, training=False, masks=self.masks, pixels=self.pixels)
        workers = worker_count(None, len(data))
        loader = scenes_in_order(data, batch_size=self.batch, workers=workers, max_bad=self.max_bad)
        found, seen, examples = list[Detections](), list[int](), list[dict[str, Any]]()
        masks = MaskPrecision() if self.masks else None
        with torch.inference_mode(), progress("scoring", len(data)) as advance:
            for scenes in loader:
                ask = finder.look if len(examples) < EXAMPLES else finder.find
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
    settings = _settings(trial, asked)
    made = settings | {"weights": job.weights_sha256} | {side: job.sides[side].sha256 for side in job.sides}
    unfinished = Unfinished(job.unfinished, made)
    runs: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for seed in asked.seeds:
        for part in asked.share:
            for arm in trial.arms:
                runs.setdefault((arm, part), []).append(trial.run(arm, part, seed, asked.steps, unfinished))
    read, val = runs["scratch", asked.share[0]][0]["read"], trial.val
    job.sides["val"] = job.sides["val"]._replace(images=read, left_out=val.left_out + len(val) - read)
    scores = {
        f"{part:g}%": gain_summary(**{arm: [run["scores"] for run in runs[arm, part]] for arm in trial.arms})
        for part in asked.share
    }
    return Outcome(scores, settings, more={"examples": runs["weights", max(asked.share)][0]["examples"]})


def _settings(trial: Trial, asked: Detection) -> dict[str, Any]:
    """What the protocol says of how the detectors learn."""
    images = {part: max(1, round(part / 100 * len(trial.train))) for part in asked.share}
    settings = {
        "detector": asked.detector,
        "transform": f"the whole image on a canvas of {trial.size} x {trial.size} pixels",
        "seeds": list(asked.seeds),
        "share": list(asked.share),
        "steps": {f"{part:g}%": _steps(asked.steps, count, asked.batch) for part, count in images.items()},
        "optimizer": f"AdamW, lr {trial.lr}, backbone {trial.backbone_lr}, weight decay {WEIGHT_DECAY}, clip {CLIP}",
        "schedule": f"batch {asked.batch}, {WARMUP:.0%} of the steps warming up, cosine to 0",
        "train_transform": f"scaled by {JITTER}, mirrored half the time",
    }
    return settings | ({} if trial.pretrained is None else {"pretrained_detector": digest(trial.pretrained)})


def plan(job: Job, asked: Detection) -> Trial:
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
    wide = canvas(job.backbone.info, train, asked.size)
    assert isinstance(job.backbone, AdaptedBackbone)  # the one adapter
    finder = build_finder(asked.detector, copy.deepcopy(job.backbone), job.classes, wide)
    rate = (SET_RATE if isinstance(finder, SetFinder) else RATE) if asked.lr == "auto" else asked.lr
    slower = rate if asked.backbone_lr == "auto" else asked.backbone_lr
    pretrained = _pretrained(job.weights, asked.detector)
    return Trial(job, asked.detector, train, val, wide, asked.batch, rate, slower, masks, asked.max_bad, pretrained)


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


def _steps(asked: int | str, images: int, batch: int) -> int:
    """What "auto" becomes."""
    if asked != "auto":
        return int(asked)
    return min(LONGEST, max(LEAST, math.ceil(PASSES * images / batch)))


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
