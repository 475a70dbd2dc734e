"""Regions grow out of patches which a pretrained network finds alike, and become boxes.

That patches of one object are alike to a self-supervised network is what LOST (arXiv 2109.14279) and TokenCut (arXiv
2202.11539) find the largest object of an image by. Here the patches grow together as cells do in selective search, so
that there are many boxes, and any backbone will do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.checkpoints.load import backbone_of_file
from ssl_vit.checkpoints.reader import weights_file
from ssl_vit.data.augment import normalise
from ssl_vit.data.crops import Box, resize
from ssl_vit.device import the_device
from ssl_vit.errors import UserError
from ssl_vit.proposals.prior import Boxes, Pixels, Prior
from ssl_vit.proposals.ranking import best_boxes
from ssl_vit.proposals.regions import grow

_LEAST = 2  # patches a side of a box


@dataclass(frozen=True)
class PatchRegions(Prior):
    """The prior boxes regions of like patches; the network runs on a GPU if there is one.

    weights: a run's export, or a file or folder of weights of any layout that ``ssl-vit inspect`` knows; architecture:
    timm's name, where the file doesn't say it. Raises UserError.
    """

    weights: str = ""
    architecture: str | None = None

    name: ClassVar[str] = "patches"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.weights:
            raise UserError("the region prior 'patches' looks with a pretrained network; set weights to its file")

    @property
    def side(self) -> int:
        """The images must be as large as those that the network was built for."""
        return max(self.size)

    def settings(self) -> dict[str, Any]:
        """What is in the file counts, wherever it lies; reads the network, so that workers find it read."""
        with weights_file(self.weights).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {**super().settings(), "weights": digest, "size": self.size}

    @cached_property
    def network(self) -> Backbone:
        """The network is read when it is first asked for, and frozen."""
        return backbone_of_file(self.weights, self.architecture).eval().requires_grad_(False).to(the_device())

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width, in pixels, are those of the images that the network was built for."""
        return self.network.info.size

    def __getstate__(self) -> dict[str, Any]:
        """What reads images elsewhere needs to know their size, and not the network."""
        return {key: value for key, value in vars(self).items() if key != "network"} | {"size": self.size}

    def look(self, image: Pixels, index: int) -> Pixels:
        """Resize the image as the network wants it, whatever its aspect: uint8 [3, H, W]."""
        pixels: Pixels = resize(image, Box(0, 0, *image.shape[:2]), self.size).numpy()
        return pixels

    @torch.inference_mode()
    def boxes(self, looked: Sequence[NDArray[Any]]) -> list[Boxes]:
        """Find the boxes of all images by one forward of the network."""
        if not looked:
            return []
        info, device = self.network.info, next(self.network.parameters()).device
        images = normalise(torch.from_numpy(np.stack(looked)).to(device), info.mean, info.std)
        alike = F.normalize(self.network(images).patches, dim=1)
        grids = alike.permute(0, 2, 3, 1).float().cpu().numpy()
        return [best_boxes(grow(grid), grid.shape[:2], _LEAST, self.count) for grid in grids]
