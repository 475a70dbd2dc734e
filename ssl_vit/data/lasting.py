"""Batches whatever becomes of the processes that read them: lost ones are started anew, and the image is named."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.sharedctypes import RawArray
from typing import Any, Generic, Protocol, TypeVar

from torch.utils.data import DataLoader, Dataset, get_worker_info

from ssl_vit.data.bad import printable
from ssl_vit.data.readers import LostReader, watched
from ssl_vit.errors import RunFailed

log = logging.getLogger("ssl_vit")

T = TypeVar("T")
Item = int | tuple[int, int]  # the number of an image, or an epoch and that
Opens = Callable[[int, bool], DataLoader[T]]  # what reads the batches from a number on, through pipes if asked

_RESTARTS = 3  # of lost reading processes, in so few batches
_FORGIVEN = 100  # batches


class UnderWay:
    """Each of some workers says which image it reads, by its number and 1; 0: none."""

    def __init__(self, workers: int) -> None:
        self._images: Any = RawArray("q", workers) if workers else []

    def says(self, reads: int) -> None:
        """Note what this process reads, where it is a worker."""
        worker = get_worker_info()
        if worker is not None and worker.id < len(self._images):
            self._images[worker.id] = reads

    def of(self, workers: Sequence[int]) -> list[int]:
        """Return the numbers of the images that these workers were reading."""
        found = [self._images[worker] - 1 for worker in workers if worker < len(self._images)]
        return [number for number in found if number >= 0]


class Named(Protocol):
    """A dataset knows what its workers read, and what that is called."""

    under_way: UnderWay

    def name(self, index: int) -> str:
        """Return an image's name."""


class Announced(Dataset[T]):
    """A dataset of one image an item, of which each worker says which one it reads."""

    def __init__(self, dataset: Dataset[T], workers: int, name: Callable[[int], str]) -> None:
        self.dataset, self.name, self.under_way = dataset, name, UnderWay(workers)

    def __getitem__(self, item: Item) -> T:
        number = item if isinstance(item, int) else item[1]
        self.under_way.says(number + 1)
        try:
            found = self.dataset[item]
        except MemoryError:
            raise MemoryError(f"at {printable(self.name(number))}") from None
        self.under_way.says(0)
        return found


class LastingLoader(Generic[T]):
    """The loader yields the batches of a DataLoader over a Named dataset, and starts lost workers anew.

    start: the number of the first batch; then: what to do after all. Raises RunFailed where the workers die or hang
    again and again.
    """

    def __init__(self, open_from: Opens[T], start: int = 0, then: str = "give the command again") -> None:
        self._open, self._start, self._then = open_from, start, then
        self._loader = open_from(start, False)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[T]:
        done, restarts, last, by_pipe, loader = self._start, 0, self._start, False, self._loader
        while True:
            try:
                for batch in watched(loader):
                    done += 1
                    yield batch
                return
            except LostReader as error:
                restarts = restarts + 1 if done - last < _FORGIVEN else 1
                problem, last = f"{error.problem}{_images(loader.dataset, error.workers)}", done
                if restarts > _RESTARTS or not loader.num_workers:
                    raise RunFailed(f"{problem}; {error.advice}, then {self._then}") from error
                how = ", and send their batches through pipes" if error.memory else ""
                log.warning("%s: they are started anew%s (%d of %d times)", problem, how, restarts, _RESTARTS)
                by_pipe = by_pipe or error.memory
                loader, self._loader = self._open(done, by_pipe), self._open(self._start, by_pipe)
            gc.collect()  # what the lost ones had sent is still in shared memory


def _images(dataset: Any, workers: Sequence[int]) -> str:
    """The images that these workers were reading, in words."""
    named: Named = dataset
    names = [printable(named.name(index)) for index in named.under_way.of(workers)]
    return f", at {' or '.join(names)}" if names else ""
