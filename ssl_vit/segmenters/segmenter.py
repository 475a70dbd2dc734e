"""The contract of what is trained to segment: it takes canvases and gives losses or the classes of all pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.backbones.backbone import BackboneInfo
from ssl_vit.data.augment import normalise
from ssl_vit.data.segment_scenes import SegmentScene
from ssl_vit.detectors.learner import Learner


class Segmentation(NamedTuple):
    """A segmentation is what was found in one image, at the image's own size [H, W]."""

    classes: Tensor  # int64 [H, W], the class of each pixel
    segments: Tensor | None = None  # int64 [H, W], the place in `labels`, -1 for none; where segments are found
    labels: Tensor | None = None  # int64 [n], the class of each segment


class Segmenter(Learner[SegmentScene]):
    """A segmenter is trained and asked with SegmentScenes."""

    finds_segments = False

    def __init__(self, info: BackboneInfo) -> None:
        super().__init__()
        self._mean, self._std = info.mean, info.std

    def segment(self, scenes: Sequence[SegmentScene]) -> list[Segmentation]:
        """Segment each image, at its own size; in evaluation mode."""
        raise NotImplementedError

    def images(self, scenes: Sequence[SegmentScene]) -> Tensor:
        """Normalise the canvases, [B, 3, S, S]; beside the images there is zero."""
        device = next(self.parameters()).device
        pixels = torch.stack([scene.image for scene in scenes if scene.image is not None]).to(device)
        images = normalise(pixels, self._mean, self._std)
        for image, scene in zip(images, scenes, strict=True):
            image[:, scene.extent[0] :] = 0.0
            image[:, :, scene.extent[1] :] = 0.0
        return images


def planes_of(scores: Tensor, scene: SegmentScene) -> Iterator[Tensor]:
    """Enlarge scores [C, h, w] of a canvas, one after the other, to the size of the image that lies on it: C of [H, W].

    One at a time, because all classes of a photo of 12 megapixels take gigabytes.
    """
    side, (height, width) = scene.segments.shape[0], scene.extent
    for plane in scores:
        canvas = enlarge(plane[None, None], (side, side))[..., :height, :width]
        yield enlarge(canvas, scene.size)[0, 0]


def likeliest(scores: Tensor, scene: SegmentScene) -> Tensor:
    """Choose the class with the highest of the scores [C, h, w] for every pixel of the image, int64 [H, W]."""
    planes = planes_of(scores, scene)
    best = next(planes).clone()
    found = torch.zeros_like(best, dtype=torch.int64)
    for label, plane in enumerate(planes, start=1):
        better = plane > best
        found[better] = label
        best = torch.where(better, plane, best)
    return found


def enlarge(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps [B, C, h, w] bilinearly to [B, C, *size]."""
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
