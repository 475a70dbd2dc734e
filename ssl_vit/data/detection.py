"""Images with boxes on a square canvas, as detectors are trained and tested on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl_vit.data.annotations import Annotations
from ssl_vit.data.bad import BadFiles, BadList
from ssl_vit.data.crops import Box, resize, sample_rng
from ssl_vit.data.decode import BadImage, decode
from ssl_vit.data.lasting import Announced, LastingLoader
from ssl_vit.data.loader import Item, StepSampler
from ssl_vit.data.outlines import Outline, drawn
from ssl_vit.data.readers import TIMEOUT, worker_options
from ssl_vit.data.values import ORDINARY, Pixels
from ssl_vit.settings import MAX_BAD

_SUBSET_STREAM, _JITTER_STREAM = 3, 4  # of sample_rng
JITTER = (0.5, 1.5)  # of the image's scale; large-scale jitter (arXiv 2012.07177) has 0.1 to 2 for very long training
_LEAST = 2.0  # pixels a side below which what a crop leaves of a box is no object any more


class Placement(NamedTuple):
    """The placement puts an image on the canvas: its pixel (x, y) is at (scale * x - left, scale * y - top)."""

    scale_x: float
    scale_y: float
    left: int
    top: int
    flipped: bool


@dataclass
class Scene:
    """A scene is an image at the upper left of a canvas of S x S pixels, with its n objects; None if unreadable."""

    index: int
    image: Tensor | None  # uint8 [3, S, S]
    extent: tuple[int, int]  # (height, width) of the image on the canvas, pixels
    boxes: Tensor  # float32 [n, 4] left, top, right, bottom, pixels of the canvas
    labels: Tensor  # int64 [n]
    masks: Tensor | None  # bool [n, S, S]
    scale: tuple[float, float]  # (x, y) canvas pixels per pixel of the original
    bad: BadFiles


class DetectionDataset(Dataset[Scene]):
    """The dataset turns (epoch, index) into a Scene.

    training: flipped at random and scaled by large-scale jitter, without crowds; else the whole image. masks: outlines
    are drawn, where all objects have one. pixels: how values become 8 bits.
    """

    def __init__(
        self,
        annotations: Annotations,
        size: int,
        *,
        training: bool,
        seed: int = 0,
        masks: bool = False,
        pixels: Pixels = ORDINARY,
    ) -> None:
        self.annotations, self.size, self.training, self.seed, self.masks = annotations, size, training, seed, masks
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, item: Item) -> Scene:
        epoch, index = item
        try:
            image = decode(self.annotations.path(index), self.pixels)
            annotated = self.annotations.sizes[index]
            if image.shape[:2] != annotated:
                raise BadImage(
                    "", f"{image.shape[1]} x {image.shape[0]} pixels, annotated as {annotated[1]} x {annotated[0]}"
                )
        except BadImage as error:
            nothing = torch.empty(0, 4), torch.empty(0, dtype=torch.int64)
            return Scene(
                index, None, (0, 0), *nothing, None, (1.0, 1.0), [(self.annotations.files[index], error.reason)]
            )
        canvas, extent, placed = self._place(image, epoch, index)
        return self._scene(index, canvas, extent, placed)

    def _place(self, image: NDArray[np.uint8], epoch: int, index: int) -> tuple[Tensor, tuple[int, int], Placement]:
        height, width = image.shape[:2]
        fit = self.size / max(height, width)
        uniform = np.array([0.0, 0.0, 0.0, 1.0])
        if self.training:
            uniform = sample_rng(self.seed, epoch, index, _JITTER_STREAM).random(4)
            fit *= JITTER[0] + (JITTER[1] - JITTER[0]) * uniform[0]
        h, w = max(1, round(height * fit)), max(1, round(width * fit))
        pixels = resize(image, Box(0, 0, height, width), (h, w), "bilinear")
        flipped = bool(uniform[3] < 0.5)
        if flipped:
            pixels = pixels.flip(-1)
        top = int(uniform[1] * (max(0, h - self.size) + 1))
        left = int(uniform[2] * (max(0, w - self.size) + 1))
        pixels = pixels[:, top : top + self.size, left : left + self.size]
        canvas = torch.zeros(3, self.size, self.size, dtype=torch.uint8)
        canvas[:, : pixels.shape[1], : pixels.shape[2]] = pixels
        return canvas, (pixels.shape[1], pixels.shape[2]), Placement(w / width, h / height, left, top, flipped)

    def _scene(self, index: int, canvas: Tensor, extent: tuple[int, int], placed: Placement) -> Scene:
        objects, width = self.annotations.objects[index], self.annotations.sizes[index][1]
        boxes = torch.from_numpy(objects.boxes.copy())
        if placed.flipped:
            boxes[:, 0::2] = width - boxes[:, [2, 0]]
        scale = torch.tensor([placed.scale_x, placed.scale_y])
        boxes = (boxes.view(-1, 2, 2) * scale - torch.tensor([placed.left, placed.top])).flatten(1)
        boxes[:, 0::2] = boxes[:, 0::2].clamp(0, extent[1])
        boxes[:, 1::2] = boxes[:, 1::2].clamp(0, extent[0])
        keep = torch.ones(len(boxes), dtype=torch.bool)
        if self.training:
            keep = ((boxes[:, 2:] - boxes[:, :2]) >= _LEAST).all(1) & ~torch.from_numpy(objects.crowd)
        masks = None
        if self.masks:
            chosen = [outline for outline, kept in zip(objects.outlines, keep.tolist(), strict=True) if kept]
            masks = self._draw(chosen, placed, self.annotations.sizes[index])
        labels = torch.from_numpy(objects.labels)[keep]
        return Scene(index, canvas, extent, boxes[keep], labels, masks, (placed.scale_x, placed.scale_y), [])

    def _draw(self, outlines: Sequence[Outline | None], placed: Placement, size: tuple[int, int]) -> Tensor:
        """Filled outlines on the canvas, bool [n, S, S]."""
        masks = torch.zeros(len(outlines), self.size, self.size, dtype=torch.bool)
        scale, corner = (placed.scale_x, placed.scale_y), (placed.left, placed.top)
        for mask, outline in zip(masks, outlines, strict=True):
            mask.copy_(torch.from_numpy(drawn(outline, self.size, size, scale, corner, placed.flipped)))
        return masks


def share_of(images: int, share: float, seed: int) -> NDArray[np.int64]:
    """Choose the images whose labels may be used: at least one, fixed by the seed, smaller shares within larger."""
    chosen = sample_rng(seed, 0, 0, _SUBSET_STREAM).permutation(images)[: max(1, round(share * images))]
    return np.sort(chosen)


class SceneLoader:
    """The loader yields batches of readable Scenes, which may be empty; what can't be read is named once and left out.

    Raises RunFailed where too many are bad and where the processes that read are lost.
    """

    def __init__(self, batches: LastingLoader[list[Scene]], images: int, max_bad: float = MAX_BAD) -> None:
        self._batches = batches
        self.bad = BadList(images, max_bad, consequence="it is left out", setting="--max-bad")

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[Scene]]:
        for scenes in self._batches:
            self.bad.note([entry for scene in scenes for entry in scene.bad])
            yield [scene for scene in scenes if scene.image is not None]


def training_scenes(
    dataset: DetectionDataset,
    chosen: NDArray[np.int64],
    *,
    batch_size: int,
    steps: int,
    seed: int,
    first: int = 0,
    workers: int = 0,
    max_bad: float = MAX_BAD,
) -> SceneLoader:
    """Load the batches of steps `first` to `steps`, of the chosen images in the stateless order of (seed, epoch)."""

    def steps_from(step: int) -> _Chosen:
        return _Chosen(chosen, min(batch_size, len(chosen)), seed, step, steps)

    return SceneLoader(_lasting(dataset, steps_from, workers, first), len(chosen), max_bad)


def scenes_in_order(
    dataset: DetectionDataset, *, batch_size: int, workers: int = 0, max_bad: float = MAX_BAD
) -> SceneLoader:
    """Load every image once, in order."""
    items = [(0, index) for index in range(len(dataset))]
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    return SceneLoader(_lasting(dataset, lambda batch: batches[batch:], workers), len(dataset), max_bad)


def _lasting(
    dataset: DetectionDataset, batches_from: Callable[[int], Iterable[list[Item]]], workers: int, first: int = 0
) -> LastingLoader[list[Scene]]:
    """The batches of these items from a number on."""
    announced = Announced(dataset, workers, dataset.annotations.files.__getitem__)

    def open_from(batch: int, by_pipe: bool) -> DataLoader[list[Scene]]:
        options = worker_options(workers, TIMEOUT, by_pipe or None)
        return DataLoader(announced, batch_sampler=batches_from(batch), collate_fn=list, **options)  # type: ignore[arg-type]  # items become lists

    return LastingLoader(open_from, first)


class _Chosen(StepSampler):
    """A StepSampler over some of the images."""

    def __init__(self, chosen: NDArray[np.int64], batch_size: int, seed: int, first: int, steps: int) -> None:
        super().__init__(len(chosen), batch_size, seed=seed, total_steps=steps, start_step=first)
        self.chosen = chosen

    def __iter__(self) -> Iterator[list[Item]]:
        for items in super().__iter__():
            yield [(epoch, int(self.chosen[index])) for epoch, index in items]
