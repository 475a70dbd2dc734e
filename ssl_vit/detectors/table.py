"""Every detector that can be trained on a backbone, by name."""

from __future__ import annotations

from collections.abc import Callable

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.detectors.deformable_detr import DeformableDETR
from ssl_vit.detectors.detr import DETR
from ssl_vit.detectors.finder import Finder, SetFinder
from ssl_vit.detectors.regions import faster_rcnn, mask_rcnn, retinanet
from ssl_vit.detectors.yolos import YOLOS

Builder = Callable[[AdaptedBackbone, int, int], Finder]  # of (backbone, classes, pixels a side of the canvas)


def detr(backbone: AdaptedBackbone, classes: int, _: int) -> SetFinder:
    """DETR in its official size, its norms learning: see ``deformable_detr``."""
    detector = DETR(backbone, classes)
    detector.freeze_norms(False)
    return SetFinder(detector, backbone.info)


def deformable_detr(backbone: AdaptedBackbone, classes: int, _: int) -> SetFinder:
    """Deformable DETR in its official size.

    Its norms learn, unlike the official one's, which always begins with weights: a network that begins without is
    normalised by nothing else.
    """
    detector = DeformableDETR(backbone, classes)
    detector.freeze_norms(False)
    return SetFinder(detector, backbone.info)


def yolos(backbone: AdaptedBackbone, classes: int, size: int) -> SetFinder:
    """YOLOS; UserError for what is no plain ViT with a class token."""
    return SetFinder(YOLOS(backbone, classes, image_size=(size, size)), backbone.info)


BUILDERS: dict[str, Builder] = {
    "faster_rcnn": faster_rcnn,
    "retinanet": retinanet,
    "mask_rcnn": mask_rcnn,
    "deformable_detr": deformable_detr,
    "detr": detr,
    "yolos": yolos,
}
