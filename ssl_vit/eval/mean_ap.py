"""COCO's mean average precision, by torchmetrics on faster-coco-eval, which equal pycocotools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_vit.data.annotations import Objects
from ssl_vit.detectors.detector import Found
from ssl_vit.errors import UserError


class Scores(NamedTuple):
    """Percent; over IoU thresholds from 0.5 to 0.95, but where the name says one; nan without objects of the size."""

    map: float
    map50: float
    map75: float
    small: float  # objects of less than 32² pixels of the original image
    medium: float
    large: float  # more than 96²


def mean_average_precision(found: Sequence[Found], wanted: Sequence[Objects]) -> Scores:
    """Score the boxes found in N images, in pixels of the original images, at most 100 an image.

    Raises UserError where the packages of the extra `detection` are not installed.
    """
    try:
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision(backend="faster_coco_eval")
    except ImportError:
        raise UserError(
            "scoring boxes needs torchmetrics and faster-coco-eval; pip install 'ssl_vit[detection]'"
        ) from None
    metric.warn_on_many_detections = False
    predictions = [
        {"boxes": one.boxes.float().cpu(), "scores": one.scores.float().cpu(), "labels": one.labels.cpu()}
        for one in found
    ]
    metric.update(predictions, [_target(objects) for objects in wanted])
    computed = metric.compute()
    keys = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
    values = [float(computed[key]) for key in keys]
    return Scores(*(100 * value if value >= 0 else float("nan") for value in values))


def _target(objects: Objects) -> dict[str, Tensor]:
    return {
        "boxes": torch.from_numpy(objects.boxes),
        "labels": torch.from_numpy(objects.labels),
        "iscrowd": torch.from_numpy(objects.crowd).long(),
        "area": torch.from_numpy(objects.areas),
    }
