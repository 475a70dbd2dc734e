"""COCO's mean average precision, by torchmetrics on faster-coco-eval, which equal pycocotools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_vit.data.annotations import Objects
from ssl_vit.detectors.detector import Detections
from ssl_vit.errors import UserError

# COCO's own, in float64: torchmetrics has float32, in which a recall of 0.3 is less than the threshold 0.3.
IOU_THRESHOLDS: list[float] = np.linspace(0.5, 0.95, 10).tolist()
RECALL_THRESHOLDS: list[float] = np.linspace(0, 1, 101).tolist()


class MeanAP(NamedTuple):
    """The values are percent over IoU thresholds 0.5 to 0.95, or at the one named; nan without objects of the size."""

    map: float
    map50: float
    map75: float
    small: float  # objects of less than 32² pixels of the original image
    medium: float
    large: float  # more than 96²


def check_installed() -> None:
    """Raise UserError where the packages of the extra `detection` are not installed: before hours of training."""
    _metric("bbox")


def mean_average_precision(found: Sequence[Detections], wanted: Sequence[Objects]) -> MeanAP:
    """Score the boxes found in N images, in pixels of the original images, at most 100 an image.

    Raises UserError where the packages of the extra `detection` are not installed.
    """
    metric = _metric("bbox")
    predictions = [
        {"boxes": one.boxes.float().cpu(), "scores": one.scores.float().cpu(), "labels": one.labels.cpu()}
        for one in found
    ]
    metric.update(predictions, [_target(objects) for objects in wanted])
    return _scores(metric)


class MaskPrecision:
    """Masks are scored as ``mean_average_precision`` scores boxes, image by image: only run lengths are kept."""

    def __init__(self) -> None:
        self._metric = _metric("segm")

    def add(self, found: Detections, wanted: Objects, masks: Tensor) -> None:
        """Note one image. masks: bool [n, H, W] of the n objects wanted, as large as those found."""
        assert found.masks is not None
        said = {"masks": found.masks.cpu(), "scores": found.scores.float().cpu(), "labels": found.labels.cpu()}
        target = {key: value for key, value in _target(wanted).items() if key != "boxes"}
        self._metric.update([said], [target | {"masks": masks}])

    def scores(self) -> MeanAP:
        """The scores are those of all images added."""
        return _scores(self._metric)


def _metric(kind: Literal["bbox", "segm"]) -> Any:
    try:
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision(
            iou_type=kind,
            iou_thresholds=IOU_THRESHOLDS,
            rec_thresholds=RECALL_THRESHOLDS,
            backend="faster_coco_eval",
        )
    except ImportError:
        raise UserError(
            "scoring boxes needs torchmetrics and faster-coco-eval; pip install 'ssl_vit[detection]'"
        ) from None
    metric.warn_on_many_detections = False
    return metric


def _scores(metric: Any) -> MeanAP:
    computed = metric.compute()
    keys = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
    values = [float(computed[key]) for key in keys]
    return MeanAP(*(100 * value if value >= 0 else float("nan") for value in values))


def _target(objects: Objects) -> dict[str, Tensor]:
    return {
        "boxes": torch.from_numpy(objects.boxes),
        "labels": torch.from_numpy(objects.labels),
        "iscrowd": torch.from_numpy(objects.crowd).long(),
        "area": torch.from_numpy(objects.areas),
    }
