"""Images with their segments on a square canvas, as segmenters are trained and tested on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_vit.data.bad import BadFiles
from ssl_vit.data.decode import BadImage, decode
from ssl_vit.data.loader import Item
from ssl_vit.data.scenes import Placement, SceneDataset
from ssl_vit.data.segments import NOWHERE, Segments, SegmentSource
from ssl_vit.data.values import ORDINARY, Pixels


@dataclass
class SegmentScene:
    """A scene is an image at the upper left of a canvas of S x S pixels, with its n segments; None if unreadable."""

    index: int
    image: Tensor | None  # uint8 [3, S, S]
    extent: tuple[int, int]  # (height, width) of the image on the canvas, pixels
    segments: Tensor  # int16 [S, S], the place in `labels`, NOWHERE beside the image and where nothing counts
    labels: Tensor  # int64 [n]
    size: tuple[int, int]  # (height, width) of the original, pixels
    truth: Segments | None  # at the original's size, where it is tested
    bad: BadFiles

    def classes(self) -> Tensor:
        """Return the class of every pixel, int64 [S, S], NOWHERE where none counts."""
        return torch.cat([self.labels, torch.tensor([NOWHERE])])[self.segments.long()]


class SegmentDataset(SceneDataset[SegmentScene]):
    """The dataset turns (epoch, index) into a SegmentScene.

    training: flipped at random and scaled by large-scale jitter, without crowds; else the whole image, with its
    segments at its own size too. pixels: how values become 8 bits.
    """

    def __init__(
        self, source: SegmentSource, size: int, *, training: bool, seed: int = 0, pixels: Pixels = ORDINARY
    ) -> None:
        super().__init__(size, training=training, seed=seed, pixels=pixels)
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        """Return an image's name."""
        return self.source.files[index]

    def __getitem__(self, item: Item) -> SegmentScene:
        epoch, index = item
        try:
            image = decode(self.source.path(index), self.pixels)
            truth = self.source.read(index, (image.shape[0], image.shape[1]))
        except BadImage as error:
            nothing, bad = torch.empty(0, dtype=torch.int64), [(self.name(index), error.reason)]
            return SegmentScene(index, None, (0, 0), torch.empty(0, 0), nothing, (0, 0), None, bad)
        canvas, extent, placed = self.place(image, epoch, index)
        segments, labels = _shown(truth, self.size, extent, placed)
        size = (image.shape[0], image.shape[1])
        return SegmentScene(index, canvas, extent, segments, labels, size, None if self.training else truth, [])


def _shown(truth: Segments, side: int, extent: tuple[int, int], placed: Placement) -> tuple[Tensor, Tensor]:
    """The segments on the canvas, int16 [S, S], and the labels of those that are to be seen there; without crowds."""
    height, width = truth.map.shape
    rows = ((np.arange(extent[0]) + placed.top + 0.5) / placed.scale_y).astype(np.int64).clip(0, height - 1)
    columns = ((np.arange(extent[1]) + placed.left + 0.5) / placed.scale_x).astype(np.int64).clip(0, width - 1)
    if placed.flipped:
        columns = width - 1 - columns
    cut: NDArray[np.int16] = truth.map[rows[:, None], columns]
    seen = np.bincount(cut[cut != NOWHERE], minlength=len(truth.labels)) > 0
    kept = seen & ~truth.crowd
    place = np.append(np.where(kept, np.cumsum(kept) - 1, NOWHERE), NOWHERE).astype(np.int16)
    canvas = np.full((side, side), NOWHERE, np.int16)
    canvas[: extent[0], : extent[1]] = place[cut]
    return torch.from_numpy(canvas), torch.from_numpy(truth.labels[kept])
