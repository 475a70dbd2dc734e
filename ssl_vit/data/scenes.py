"""Images on a square canvas, as what finds objects or segments is trained and tested on them; read batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl_vit.data.bad import BadFiles, BadList
from ssl_vit.data.crops import Box, resize, sample_rng
from ssl_vit.data.lasting import Announced, LastingLoader
from ssl_vit.data.loader import Item, StepSampler
from ssl_vit.data.readers import TIMEOUT, worker_options
from ssl_vit.data.values import ORDINARY, Pixels
from ssl_vit.settings import MAX_BAD

_SUBSET_STREAM, _JITTER_STREAM = 3, 4  # of sample_rng
JITTER = (0.5, 1.5)  # of the image's scale; large-scale jitter (arXiv 2012.07177) has 0.1 to 2 for very long training


class OnCanvas(Protocol):
    """A scene is an image on a canvas with what is to be found in it; None if unreadable."""

    image: Tensor | None
    bad: BadFiles


S = TypeVar("S", bound=OnCanvas)


class Placement(NamedTuple):
    """The placement puts an image on the canvas: its pixel (x, y) is at (scale * x - left, scale * y - top)."""

    scale_x: float
    scale_y: float
    left: int
    top: int
    flipped: bool


class SceneDataset(Dataset[S]):
    """The dataset turns (epoch, index) into a scene on a canvas of `size` pixels a side.

    training: flipped at random and scaled by large-scale jitter; else the whole image. pixels: how values become
    8 bits.
    """

    def __init__(self, size: int, *, training: bool, seed: int = 0, pixels: Pixels = ORDINARY) -> None:
        self.size, self.training, self.seed, self.pixels = size, training, seed, pixels

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, index: int) -> str:
        """Return an image's name."""
        raise NotImplementedError

    def place(self, image: NDArray[np.uint8], epoch: int, index: int) -> tuple[Tensor, tuple[int, int], Placement]:
        """Put an image [H, W, 3] on the canvas [3, S, S]: that, the (height, width) of the image there, and how."""
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


def share_of(images: int, share: float, seed: int) -> NDArray[np.int64]:
    """Choose the images whose labels may be used: at least one, fixed by the seed, smaller shares within larger."""
    chosen = sample_rng(seed, 0, 0, _SUBSET_STREAM).permutation(images)[: max(1, round(share * images))]
    return np.sort(chosen)


class SceneLoader(Generic[S]):
    """The loader yields batches of readable scenes, which may be empty; what can't be read is named once and left out.

    Raises RunFailed where too many are bad and where the processes that read are lost.
    """

    def __init__(self, batches: LastingLoader[list[S]], images: int, max_bad: float = MAX_BAD) -> None:
        self._batches = batches
        self.bad = BadList(images, max_bad, consequence="it is left out", setting="--max-bad")

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[S]]:
        for scenes in self._batches:
            self.bad.note([entry for scene in scenes for entry in scene.bad])
            yield [scene for scene in scenes if scene.image is not None]


def training_scenes(
    dataset: SceneDataset[S],
    chosen: NDArray[np.int64],
    *,
    batch_size: int,
    steps: int,
    seed: int,
    first: int = 0,
    workers: int = 0,
    max_bad: float = MAX_BAD,
) -> SceneLoader[S]:
    """Load the batches of steps `first` to `steps`, of the chosen images in the stateless order of (seed, epoch)."""

    def steps_from(step: int) -> _Chosen:
        return _Chosen(chosen, min(batch_size, len(chosen)), seed, step, steps)

    return SceneLoader(_lasting(dataset, steps_from, workers, first), len(chosen), max_bad)


def scenes_in_order(
    dataset: SceneDataset[S], *, batch_size: int, workers: int = 0, max_bad: float = MAX_BAD
) -> SceneLoader[S]:
    """Load every image once, in order."""
    items = [(0, index) for index in range(len(dataset))]
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    return SceneLoader(_lasting(dataset, lambda batch: batches[batch:], workers), len(dataset), max_bad)


def _lasting(
    dataset: SceneDataset[S], batches_from: Callable[[int], Iterable[list[Item]]], workers: int, first: int = 0
) -> LastingLoader[list[S]]:
    """The batches of these items from a number on."""
    announced = Announced(dataset, workers, dataset.name)

    def open_from(batch: int, by_pipe: bool) -> DataLoader[list[S]]:
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
