"""Images as evaluation sees them: resized, cropped at the centre, labelled; bad files are named and left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl_vit.data.bad import BadFiles, BadList, note_damage
from ssl_vit.data.caps import MAX_PIXELS
from ssl_vit.data.crops import Box, resize
from ssl_vit.data.decode import BadImage
from ssl_vit.data.lasting import Announced, LastingLoader
from ssl_vit.data.readers import TIMEOUT, worker_options
from ssl_vit.data.sources import Source

_LONG = 16  # times the short side; what lies beyond is cut off before resizing

# A change of the pixels [S, S, 3] of the image with this index, on purpose: for scores of robustness.
Alteration = Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]


@dataclass(frozen=True)
class EvalSample:
    """A sample is one image; `image` is None where the file could not be read."""

    index: int
    image: Tensor | None  # uint8 [3, S, S]
    label: int  # -1 without labels
    bad: BadFiles


@dataclass
class EvalBatch:
    """A batch holds the B of its images that could be read, and names the others."""

    images: Tensor  # uint8 [B, 3, S, S]; see augment.normalise
    labels: Tensor  # int64 [B], -1 without labels
    index: Tensor  # int64 [B] in the source
    unread: Tensor  # int64, the indices of those that could not be read
    bad: BadFiles  # their names and reasons

    def pin_memory(self) -> EvalBatch:
        """Copy the images to pinned memory, as the DataLoader asks."""
        return EvalBatch(self.images.pin_memory(), self.labels, self.index, self.unread, self.bad)


class EvalDataset(Dataset[EvalSample]):
    """Resize the short side to `resize` pixels (by default size * 256 / 224) and take the central `size` pixels."""

    def __init__(
        self,
        source: Source,
        size: int,
        resize: int | None = None,
        max_pixels: float = MAX_PIXELS,
        alter: Alteration | None = None,
    ) -> None:
        self.source, self.size, self.max_pixels, self.alter = source, size, max_pixels, alter
        self.resize = round(size * 256 / 224) if resize is None else resize
        if self.resize < size:
            raise ValueError(f"resize {self.resize} is smaller than size {size}")

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> EvalSample:
        label = self.source.label(index)
        label = -1 if label is None else label
        try:
            image = _middle(self.source.read(index, self.max_pixels))
        except BadImage as error:
            return EvalSample(index, None, label, [(self.source.name(index), error.reason)])
        height, width = image.shape[:2]
        short = min(height, width)
        size = (int(self.resize * height / short), int(self.resize * width / short))
        whole = resize(image, Box(0, 0, height, width), size)
        top, left = (round((side - self.size) / 2) for side in size)
        crop = whole[:, top : top + self.size, left : left + self.size]
        if self.alter is not None:
            pixels = self.alter(crop.permute(1, 2, 0).numpy(), index)
            crop = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
        return EvalSample(index, crop, label, [])


def _middle(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The middle of an image that is very long, [H, W, 3], of whose resized whole little would be left."""
    height, width = image.shape[:2]
    most = _LONG * min(height, width)
    top, left = max(0, height - most) // 2, max(0, width - most) // 2
    return np.ascontiguousarray(image[top : height - top, left : width - left])


class EvalLoader:
    """The loader yields EvalBatches in order, over a whole dataset or over `rows` of it; it logs each bad file once."""

    def __init__(
        self,
        dataset: EvalDataset,
        batch_size: int,
        workers: int = 0,
        pin_memory: bool = False,
        timeout: float = TIMEOUT,
        max_bad: float = 0.05,
        rows: Sequence[int] | None = None,
    ) -> None:
        note_damage(dataset.source, max_bad)
        chosen = range(len(dataset)) if rows is None else rows
        announced = Announced(dataset, workers, dataset.source.name)

        def open_from(batch: int, by_pipe: bool) -> DataLoader[EvalBatch]:
            return DataLoader(
                announced,  # type: ignore[arg-type]  # of samples, of which the next makes a batch
                batch_size=batch_size,
                sampler=chosen[batch * batch_size :],
                collate_fn=_collate,
                pin_memory=pin_memory,
                **worker_options(workers, timeout, by_pipe or None),
            )

        self._batches = LastingLoader(open_from)
        self.bad = BadList(len(dataset), max_bad, consequence="it is left out")

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[EvalBatch]:
        for batch in self._batches:
            self.bad.note(batch.bad)
            yield batch


def _collate(samples: Sequence[EvalSample]) -> EvalBatch:
    good = [(sample.index, sample.image, sample.label) for sample in samples if sample.image is not None]
    return EvalBatch(
        torch.stack([image for _, image, _ in good]) if good else torch.empty(0, dtype=torch.uint8),
        torch.tensor([label for _, _, label in good], dtype=torch.int64),
        torch.tensor([index for index, _, _ in good], dtype=torch.int64),
        torch.tensor([sample.index for sample in samples if sample.image is None], dtype=torch.int64),
        [entry for sample in samples for entry in sample.bad],
    )
