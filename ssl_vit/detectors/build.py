"""A name in the table becomes a detector on a backbone."""

from __future__ import annotations

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.composite import CompositeBackbone
from ssl_vit.detectors.deformable_detr import DeformableDETR
from ssl_vit.detectors.detr import DETR
from ssl_vit.detectors.finder import Finder, SetFinder
from ssl_vit.detectors.networks import lookup
from ssl_vit.detectors.table import DETECTORS, DetectorName
from ssl_vit.detectors.yolos import YOLOS
from ssl_vit.errors import UserError


def build_finder(name: DetectorName, backbone: AdaptedBackbone, classes: int, size: int) -> Finder:
    """Build the detector of this name on a backbone, for so many classes and canvases of `size` pixels a side.

    Raises:
        UserError: the detector can't stand on this backbone.
    """
    finder: Finder = lookup(DETECTORS[name].build)(backbone, classes, size)
    return finder


def build_detr(backbone: AdaptedBackbone, classes: int, _: int) -> SetFinder:
    """Build DETR (arXiv 2005.12872) in its official size, its norms learning: see ``build_deformable_detr``."""
    detector = DETR(backbone, classes)
    detector.freeze_norms(False)
    return SetFinder(detector, backbone.info)


def build_deformable_detr(backbone: AdaptedBackbone, classes: int, _: int) -> SetFinder:
    """Build Deformable DETR (arXiv 2010.04159) in its official size.

    Its norms learn, unlike the official one's, which always begins with weights: a network that begins without is
    normalised by nothing else.
    """
    detector = DeformableDETR(backbone, classes)
    detector.freeze_norms(False)
    return SetFinder(detector, backbone.info)


def build_yolos(backbone: AdaptedBackbone, classes: int, size: int) -> SetFinder:
    """Build YOLOS (arXiv 2106.00666); UserError for what is no plain ViT with a class token."""
    if isinstance(backbone, CompositeBackbone):
        raise UserError("--composite: YOLOS reads tokens, no stages that could be composed; choose another --detector")
    return SetFinder(YOLOS(backbone, classes, image_size=(size, size)), backbone.info)
