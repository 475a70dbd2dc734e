"""Batches of views for a run that counts steps: the order of images, the workers, the bad files.

The global batch of step s is one slice of the epoch's order, and a rank reads one contiguous part of it: two ranks
with batch b read what one rank with batch 2b reads. Order is a function of (seed, epoch), views of (seed, epoch,
index), so batches do not depend on the number of workers, and a run resumed at any step sees what it would have seen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ssl_vit.data.bad import BadList, note_damage, printable
from ssl_vit.data.batch import Batch
from ssl_vit.data.boxes import boxes_in_crops
from ssl_vit.data.caps import MAX_PIXELS
from ssl_vit.data.crops import fill_views, sample_rng, wanted_side
from ssl_vit.data.decode import BadImage
from ssl_vit.data.lasting import LastingLoader, UnderWay
from ssl_vit.data.plan import ViewPlan
from ssl_vit.data.readers import TIMEOUT, wants_pipe, worker_options
from ssl_vit.data.sources import Source, require

log = logging.getLogger("ssl_vit")

Item = tuple[int, int]  # (epoch, index of the image in the source)


class RegionBoxes(Protocol):
    """Boxes were proposed for each image of a source, and are looked up by its index."""

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """[n, 4], best first: left, top, right, bottom, as shares of the image's sides."""


_ORDER_STREAM, _REPLACEMENT_STREAM = 1, 2  # of sample_rng; the views have stream 0
_REPLACEMENTS = 32  # tries at a readable image in place of a bad one


def steps_per_epoch(num_images: int, batch_size: int, world: int = 1) -> int:
    """Count the whole global batches in one pass over the images; what is left over waits for the next order."""
    return num_images // (batch_size * world)


class StepSampler(Sampler[list[Item]]):
    """The sampler yields this rank's part of the global batch for each step from `start_step` to `total_steps`.

    ``len()`` is `total_steps`, whatever the start.

    >>> [len(items) for items in StepSampler(num_images=10, batch_size=4, seed=0, total_steps=3)]
    [4, 4, 4]
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        *,
        seed: int,
        total_steps: int,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.total_steps, self.start_step = total_steps, start_step
        self.rank, self.world = rank, world
        self.per_epoch = steps_per_epoch(num_images, batch_size, world)
        if self.per_epoch == 0:
            raise ValueError(f"{num_images} images are fewer than a global batch of {batch_size} x {world}")

    def __len__(self) -> int:
        return self.total_steps

    def __iter__(self) -> Iterator[list[Item]]:
        current, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start_step, self.total_steps):
            epoch, within = divmod(step, self.per_epoch)
            if epoch != current:
                current, order = epoch, epoch_order(self.num_images, self.seed, epoch)
            first = (within * self.world + self.rank) * self.batch_size
            yield [(epoch, index) for index in order[first : first + self.batch_size].tolist()]


def epoch_order(num_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Draw the order in which an epoch reads the images, [num_images]."""
    return sample_rng(seed, epoch, 0, _ORDER_STREAM).permutation(num_images)


class Views(Dataset[Batch]):
    """The dataset turns (epoch, index) of images into views; (seed, epoch, index) names what replaces a bad one.

    workers: how many read it, each of which says in ``under_way`` which image it reads.
    """

    def __init__(
        self, source: Source, plan: ViewPlan, seed: int, max_pixels: float = MAX_PIXELS, workers: int = 0
    ) -> None:
        self.source, self.plan, self.seed, self.max_pixels = source, plan, seed, max_pixels
        self.under_way, self.name = UnderWay(workers), source.name
        self._want = 2 * wanted_side(plan)  # twice, so that even the smallest crops are of resampled, not raw, pixels

    def __getitem__(self, items: Sequence[Item]) -> Batch:
        batch = Batch.empty(self.plan, [index for _, index in items])
        places = batch.places
        params = [part.view(-1, len(items), part.shape[1]) for part in batch.params]  # [count, B, P]
        for place, (epoch, index) in enumerate(items):
            image = self._read(epoch, index, place, batch)
            if image is None:
                return replace(batch, pixels=batch.pixels[:0])
            rng = sample_rng(self.seed, epoch, index)
            fill_views(image, self.plan, rng, [p[:, place] for p in places], [p[:, place] for p in params])
        return batch

    def _read(self, epoch: int, index: int, place: int, batch: Batch) -> NDArray[np.uint8] | None:
        """The first image that can be read, noted in the batch with those that can't; None if none can."""
        for candidate in self._candidates(epoch, index):
            self.under_way.says(candidate + 1)
            try:
                image = self.source.read(candidate, self.max_pixels, self._want)
            except BadImage as error:
                batch.bad.append((self.source.name(candidate), error.reason))
                continue
            except MemoryError:
                raise MemoryError(f"at {printable(self.source.name(candidate))}") from None
            self.under_way.says(0)
            batch.index[place] = candidate
            return image
        return None

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        yield index
        yield from (
            sample_rng(self.seed, epoch, index, _REPLACEMENT_STREAM)
            .integers(len(self.source), size=_REPLACEMENTS)
            .tolist()
        )


class Loader:
    """The loader yields Batches, and names each bad file once.

    batches: what reads them; total: steps in all; regions: where the plan asks for boxes, what was proposed. Raises
    RunFailed above the bearable share of bad files.
    """

    def __init__(
        self,
        batches: LastingLoader[Batch],
        total: int,
        bad: BadList,
        regions: RegionBoxes | None = None,
        boxes: int = 0,
    ) -> None:
        self._batches, self._total = batches, total
        self.bad, self._regions, self._count = bad, regions, boxes

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches:
            self.bad.note(batch.bad)
            if not len(batch.pixels):
                raise self.bad.failure(f"{_REPLACEMENTS + 1} images in a row could not be read")
            if self._regions is not None and self._count:
                batch.boxes = boxes_in_crops(_first_boxes(self._regions, batch.index, self._count), batch.params[0])
            yield batch


class InPhases:
    """Loaders one after the other, each opened when the one before has given its last batch.

    total: steps in all; phases: what opens each loader.
    """

    def __init__(self, phases: Sequence[Callable[[], Loader]], total: int) -> None:
        self._phases, self._total = phases, total
        self._now = phases[0]()

    @property
    def bad(self) -> BadList:
        """The files that could not be read."""
        return self._now.bad

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[Batch]:
        yield from self._now
        for phase in self._phases[1:]:
            self._now = phase()
            yield from self._now


def _first_boxes(regions: RegionBoxes, index: Tensor, count: int) -> Tensor:
    """The first boxes of images [B], float32 [B, count, 4], nan where an image has fewer."""
    boxes = torch.full((len(index), count, 4), torch.nan)
    for rows, image in zip(boxes, index.tolist(), strict=True):
        found = torch.from_numpy(regions[image][:count])
        rows[: len(found)] = found
    return boxes


def build_loader(
    source: Source,
    plan: ViewPlan,
    *,
    batch_size: int,
    seed: int,
    total_steps: int,
    start_step: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    timeout: float = TIMEOUT,
    max_bad: float = 0.05,
    bad_list: Path | None = None,
    max_pixels: float = MAX_PIXELS,
    regions: RegionBoxes | None = None,
) -> Loader:
    """Build the loader that stands between a Source and a training step.

    batch_size: images a rank and step; timeout: seconds without a batch, then the workers are taken for hung;
    max_bad: the share of the files that may be unreadable; bad_list: where they are listed, a JSON object a line;
    regions: boxes of the source's images, needed where the plan asks for some.
    Raises UserError for fewer images than a global batch.
    """
    require(source, batch_size * world)
    note_damage(source, max_bad)
    pipe = wants_pipe(workers, world * batch_size * plan.bytes())

    def open_from(step: int, by_pipe: bool) -> DataLoader[Batch]:
        sampler = StepSampler(
            len(source), batch_size, seed=seed, total_steps=total_steps, start_step=step, rank=rank, world=world
        )
        return DataLoader(
            Views(source, plan, seed, max_pixels, workers),
            batch_size=None,  # the sampler's items are batches
            sampler=sampler,
            pin_memory=pin_memory,
            **worker_options(workers, timeout, pipe or by_pipe),
        )

    bad = BadList(len(source), max_bad, bad_list)
    batches = LastingLoader(open_from, start_step, then="resume the run")
    return Loader(batches, total_steps, bad, regions, plan.boxes)
