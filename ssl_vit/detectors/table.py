"""Every detector that can be trained on a backbone: the one table that all lists of them come from. Needs no torch.

A new detector is one file, one name and one entry here.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

DetectorName = Literal["faster_rcnn", "retinanet", "mask_rcnn", "deformable_detr", "detr", "yolos"]
"""A detector that ``ssl-vit eval detection`` trains."""
PretrainableName = Literal["deformable_detr", "detr"]
"""A detector that can embed its objects, so that DETReg can pretrain it."""


class DetectorEntry(NamedTuple):
    """Where a detector is built, and of one that can be pretrained its network and its official size."""

    build: str  # "module:function" of (backbone, classes, pixels a side of the canvas) -> Finder
    network: str | None = None  # "module:class"
    queries: int = 0
    hidden: int = 0  # width of the hidden layers


DETECTORS: dict[DetectorName, DetectorEntry] = {
    "faster_rcnn": DetectorEntry("ssl_vit.detectors.regions:build_faster_rcnn"),
    "retinanet": DetectorEntry("ssl_vit.detectors.regions:build_retinanet"),
    "mask_rcnn": DetectorEntry("ssl_vit.detectors.regions:build_mask_rcnn"),
    "deformable_detr": DetectorEntry(
        "ssl_vit.detectors.build:build_deformable_detr", "ssl_vit.detectors.deformable_detr:DeformableDETR", 300, 1024
    ),
    "detr": DetectorEntry("ssl_vit.detectors.build:build_detr", "ssl_vit.detectors.detr:DETR", 100, 2048),
    "yolos": DetectorEntry("ssl_vit.detectors.build:build_yolos"),
}
