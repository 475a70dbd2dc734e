"""The contract of a detector that is trained: Scenes in, losses or boxes out, whatever it is inside."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from ssl_vit.backbones.backbone import BackboneInfo
from ssl_vit.data.augment import normalise
from ssl_vit.data.detection import Scene
from ssl_vit.detectors.detector import Detector, Found, Predictions, best
from ssl_vit.detectors.losses import SetLoss, Target


class Finder(nn.Module):
    """A detector as it is trained and asked; Scenes are on the CPU, and all of them have an image."""

    finds_masks = False

    def losses(self, scenes: Sequence[Scene]) -> dict[str, Tensor]:
        """Weighted parts, to be summed; in training mode."""
        raise NotImplementedError

    def find(self, scenes: Sequence[Scene]) -> list[Found]:
        """What is in each image, best first, in pixels of its canvas; in evaluation mode."""
        raise NotImplementedError

    def trunk(self) -> nn.Module:
        """The backbone in it, which may learn at a rate of its own."""
        raise NotImplementedError


class SetFinder(Finder):
    """A detector of queries (DETR, Deformable DETR, YOLOS) with its set loss.

    Boxes are shares of the image, not of the canvas, as the official code has them.
    """

    def __init__(self, detector: Detector, info: BackboneInfo) -> None:
        super().__init__()
        self.detector, self.loss = detector, SetLoss.of(detector.focal)
        self._mean, self._std = info.mean, info.std

    def losses(self, scenes: Sequence[Scene]) -> dict[str, Tensor]:
        """ "class", "l1" and "giou"."""
        device = next(self.parameters()).device
        return self.loss(self._see(scenes), [_target(scene, device) for scene in scenes])

    def find(self, scenes: Sequence[Scene]) -> list[Found]:
        """At most 100 boxes an image."""
        sizes = torch.tensor([scene.extent for scene in scenes])
        return best(self._see(scenes), sizes, focal=self.detector.focal)

    def trunk(self) -> nn.Module:
        """With the detection tokens in YOLOS."""
        return self.detector.get_submodule("backbone")

    def _see(self, scenes: Sequence[Scene]) -> Predictions:
        device = next(self.parameters()).device
        pixels = torch.stack([scene.image for scene in scenes if scene.image is not None]).to(device)
        padding = torch.ones(len(scenes), *pixels.shape[-2:], dtype=torch.bool)
        for each, scene in zip(padding, scenes, strict=True):
            each[: scene.extent[0], : scene.extent[1]] = False
        padding = padding.to(device)
        images = normalise(pixels, self._mean, self._std).masked_fill(padding[:, None], 0.0)
        return self.detector(images, padding)  # type: ignore[no-any-return]  # nn.Module's call has no type


def _target(scene: Scene, device: torch.device) -> Target:
    height, width = scene.extent
    corners = scene.boxes / torch.tensor([width, height, width, height])
    return Target(box_convert(corners, "xyxy", "cxcywh").to(device), scene.labels.to(device))
