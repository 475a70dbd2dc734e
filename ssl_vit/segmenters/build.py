"""A name in the table becomes a segmenter on a backbone."""

from __future__ import annotations

from collections.abc import Sequence

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.detectors.networks import lookup
from ssl_vit.detectors.regions import SMALL
from ssl_vit.segmenters.fpt import STRIDES, FeaturePyramidTransformer
from ssl_vit.segmenters.levels import Levels
from ssl_vit.segmenters.maskformer import MaskFormer
from ssl_vit.segmenters.per_pixel import PerPixel
from ssl_vit.segmenters.segmenter import Segmenter
from ssl_vit.segmenters.table import SEGMENTERS, SegmenterName
from ssl_vit.segmenters.upernet import UPerNetDecoder


def build_segmenter(name: SegmenterName, backbone: AdaptedBackbone, things: Sequence[bool], size: int) -> Segmenter:
    """Build the segmenter of this name on a backbone, for canvases of `size` pixels a side.

    things: of each class, whether its segments are single objects. On canvases below 400 pixels it is a quarter as wide
    as the official one.
    """
    segmenter: Segmenter = lookup(SEGMENTERS[name])(backbone, things, 4 if size < SMALL else 1)
    return segmenter


def build_maskformer(backbone: AdaptedBackbone, things: Sequence[bool], part: int) -> MaskFormer:
    """Build MaskFormer (arXiv 2107.06278), the official width divided by `part`."""
    return MaskFormer(backbone, things, dim=256 // part, hidden=2048 // part)


def build_upernet(backbone: AdaptedBackbone, things: Sequence[bool], part: int) -> PerPixel:
    """Build UPerNet (arXiv 1807.10221), the official width divided by `part`."""
    levels = Levels(backbone, 256 // part)
    decoder = UPerNetDecoder(levels.channels, len(things), 512 // part)
    return PerPixel(backbone.info, levels, decoder, len(things), 256 // part)


def build_fpt(backbone: AdaptedBackbone, things: Sequence[bool], part: int) -> PerPixel:
    """Build FTN's feature pyramid transformer (arXiv 2106.04108), the official width divided by `part`."""
    levels = Levels(backbone, 256 // part, STRIDES)
    decoder = FeaturePyramidTransformer(levels.channels, len(things), 512 // part)
    return PerPixel(backbone.info, levels, decoder, len(things), 256 // part)
