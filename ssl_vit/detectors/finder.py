"""A finder is a detector that is trained: it takes Scenes and gives losses or boxes, whatever it is inside."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from ssl_vit.backbones.backbone import BackboneInfo
from ssl_vit.data.augment import normalise
from ssl_vit.data.detection import Scene
from ssl_vit.detectors.deformable_detr import DeformableDETR
from ssl_vit.detectors.detector import Detections, Detector, best
from ssl_vit.detectors.detr import DETR
from ssl_vit.detectors.gaze import gaze
from ssl_vit.detectors.learner import Learner
from ssl_vit.detectors.losses import GroundTruth, SetLoss


class Finder(Learner[Scene]):
    """A finder is trained and asked with Scenes."""

    finds_masks = False

    def find(self, scenes: Sequence[Scene]) -> list[Detections]:
        """Find what is in each image, best first, in pixels of its canvas; in evaluation mode."""
        raise NotImplementedError

    def look(self, scenes: Sequence[Scene]) -> list[Detections]:
        """Find the same, with the places that were looked at, if its queries look; for pictures."""
        return self.find(scenes)


class SetFinder(Finder):
    """A detector of queries (DETR, Deformable DETR, YOLOS) stands here with its set loss.

    Boxes are shares of the image, not of the canvas, as the official code has them.
    """

    def __init__(self, detector: Detector, info: BackboneInfo) -> None:
        super().__init__()
        self.detector, self.loss = detector, SetLoss.of(detector.focal)
        self._mean, self._std = info.mean, info.std

    def losses(self, scenes: Sequence[Scene]) -> dict[str, Tensor]:
        """Return the parts "class", "l1" and "giou"."""
        device = next(self.parameters()).device
        return self.loss(self.detector(*self._images(scenes)), [_target(scene, device) for scene in scenes])

    def find(self, scenes: Sequence[Scene]) -> list[Detections]:
        """Find at most 100 boxes an image."""
        return best(self.detector(*self._images(scenes)), _extents(scenes), focal=self.detector.focal)

    def look(self, scenes: Sequence[Scene]) -> list[Detections]:
        """Find them with the attention of the last decoder layer; YOLOS has no decoder."""
        if not isinstance(self.detector, DETR | DeformableDETR):
            return self.find(scenes)
        images, padding = self._images(scenes)
        seen = gaze(self.detector, images, padding)
        side = torch.tensor([images.shape[-1], images.shape[-2]], device=images.device)
        looks = torch.cat([seen.points * side, seen.weights[..., None]], -1)
        return best(seen.predictions, _extents(scenes), focal=self.detector.focal, looks=looks)

    def trunk(self) -> nn.Module:
        """Return the backbone, with the detection tokens in YOLOS."""
        return self.detector.get_submodule("backbone")

    def _images(self, scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
        """Normalised [B, 3, S, S], and the padding, bool [B, S, S]."""
        device = next(self.parameters()).device
        pixels = torch.stack([scene.image for scene in scenes if scene.image is not None]).to(device)
        padding = torch.ones(len(scenes), *pixels.shape[-2:], dtype=torch.bool)
        for each, scene in zip(padding, scenes, strict=True):
            each[: scene.extent[0], : scene.extent[1]] = False
        padding = padding.to(device)
        return normalise(pixels, self._mean, self._std).masked_fill(padding[:, None], 0.0), padding


def _extents(scenes: Sequence[Scene]) -> Tensor:
    return torch.tensor([scene.extent for scene in scenes])


def _target(scene: Scene, device: torch.device) -> GroundTruth:
    height, width = scene.extent
    corners = scene.boxes / torch.tensor([width, height, width, height])
    return GroundTruth(box_convert(corners, "xyxy", "cxcywh").to(device), scene.labels.to(device))
