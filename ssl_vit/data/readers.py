"""The processes that read images: how they are started, how long they are waited for, and what became of a lost one.

Each batch lies in shared memory on its way; where there is too little of that, as in a container with the 64 MB that is
usual there, it is sent through a pipe instead.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data._utils import signal_handling

from ssl_vit.errors import RunFailed
from ssl_vit.process import start_worker

MANY = 1000  # images from which worker processes are worth starting
TIMEOUT = 600  # seconds without a batch after which the workers are taken for hung
_AHEAD = 4  # batches of each worker that are ready or under way
_POLL = 1.0  # seconds between two looks at whether a worker whose batch is awaited is still there
_BATCH = 20_000_000  # bytes of a batch where nothing else is known: 128 images of 224 x 224 pixels
_SHARED = Path("/dev/shm")  # where Linux has shared memory
_MORE = "give the container more (docker run --shm-size=8g) or set workers to 0"

log = logging.getLogger("ssl_vit")
_by_pipe = False  # in a worker: how its batches travel


class LostReader(RunFailed):
    """A process that reads images was lost; ``workers``: the numbers of those it may have been."""

    def __init__(self, problem: str, workers: list[int], *, memory: bool = False) -> None:
        self.problem, self.workers, self.memory = problem, workers, memory  # whether shared memory was too small
        self.advice = _MORE if memory else "use fewer workers, or check the storage and the image"
        super().__init__(f"{problem}; {self.advice}, then give the command again")


def worker_count(asked: int | None, images: int, many: int = MANY) -> int:
    """Return how many processes read images: as many as asked for; else none for few images, and one a core up to 8."""
    if asked is not None:
        return asked
    return min(8, os.cpu_count() or 1) if images > many else 0


def worker_options(workers: int, timeout: float, by_pipe: bool | None = None) -> dict[str, Any]:
    """Return the options of a DataLoader that only make sense with workers.

    timeout: seconds, kept by :func:`watched`; by_pipe: how batches travel, decided for usual ones if None.
    """
    if workers == 0:
        return {}
    return {
        "num_workers": workers,
        "prefetch_factor": _AHEAD,
        "persistent_workers": True,
        "timeout": timeout,
        "worker_init_fn": partial(_start, os.getpid(), wants_pipe(workers) if by_pipe is None else by_pipe),
    }


def wants_pipe(workers: int, batch: int = _BATCH) -> bool:
    """Whether shared memory is too small for what so many workers have ready, batches of so many bytes; said if so."""
    try:
        free = shutil.disk_usage(_SHARED).free
    except OSError:  # another system, which has no such place
        return False
    need = workers * (_AHEAD + 1) * batch
    if workers and free < need:
        megabytes = (
            f"{_SHARED} has {free / 1e6:.0f} MB free, {workers} processes that read images fill {need / 1e6:.0f} MB"
        )
        log.warning("%s: batches go through pipes, which is slower; docker's --shm-size gives more", megabytes)
        return True
    return False


def in_shared_memory() -> bool:
    """Whether what this process makes travels to the main one in shared memory."""
    return get_worker_info() is not None and not _by_pipe


def _start(main: int, by_pipe: bool, number: int) -> None:
    global _by_pipe
    start_worker(main, number)
    _by_pipe = by_pipe
    ForkingPickler.register(Tensor, _sent)


def _sent(tensor: Tensor) -> tuple[Any, ...]:
    """How a tensor travels: in shared memory, or by its values, also where no more is left of that by now."""
    with suppress(RuntimeError):
        if not _by_pipe:
            tensor.share_memory_()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            return tuple(reduce_tensor(tensor))  # type: ignore[no-untyped-call]  # and this
    return torch.from_numpy, (tensor.detach().numpy(),)


def watched(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield the batches of a DataLoader; LostReader where a worker is killed, stopped or hangs, or memory runs out.

    The workers have ended by then. They are looked at where a batch is awaited, and nowhere else: torch's handler of
    SIGCHLD would raise in the midst of a step.
    """
    if loader.num_workers == 0:
        with _memory():
            yield from loader
        return
    batches = _begin(loader)
    batches._timeout = _POLL
    if not hasattr(batches, "_pin_memory_thread"):  # which writes to it at the end
        batches._worker_result_queue._writer.close()  # else half of what a killed worker wrote is waited for for ever
    Finalize(batches, _kill, (batches._workers,), exitpriority=100)  # else a worker that hangs is waited for at the end
    watch = _Watch(batches._workers, loader.timeout)
    try:
        while (batch := _next(batches, watch)) is not None:
            yield batch
    except LostReader:
        _abandon(batches)
        raise
    finally:
        watch.over.set()


def _begin(loader: DataLoader[Any]) -> Any:
    """Start the workers."""
    try:
        with _no_handler():
            return iter(loader)
    except OSError as error:
        if error.errno != errno.ENOSPC:  # no room even for what they wait for each other with
            raise
        raise LostReader("shared memory (/dev/shm) is full", [], memory=True) from error


def _next(batches: Any, watch: _Watch) -> Any:
    """The next batch, None after the last."""
    with watch.waiting(), _memory():
        while True:
            try:
                return next(batches, None)
            except (RuntimeError, OSError, EOFError) as error:
                if str(error).startswith("DataLoader timed out") and not watch.hung:
                    continue
                lost = _lost(batches, watch, error)
                if lost is None:
                    raise
                raise lost from error


@contextmanager
def _memory() -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        where = re.search(r"(?:^|MemoryError: )(at .+)\Z", str(error).rstrip())  # behind a worker's traceback
        raise LostReader(f"memory ran out while images were read{', ' + where[1] if where else ''}", []) from error


class _Watch:
    """A thread beside kills workers for whose batch was waited too long, as the main one may hang in reading it."""

    def __init__(self, workers: list[BaseProcess], timeout: float) -> None:
        self.over, self.hung, self.timeout = threading.Event(), False, timeout
        self._workers, self._until = workers, float("inf")
        threading.Thread(target=self._look, daemon=True).start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, the clock runs."""
        self._until = time.monotonic() + self.timeout
        try:
            yield
        finally:
            self._until = float("inf")

    def _look(self) -> None:
        while not self.over.wait(min(_POLL, self.timeout / 4)):
            if time.monotonic() > self._until:
                self.hung = True
                _kill(self._workers)


def _lost(batches: Any, watch: _Watch, error: Exception) -> LostReader | None:
    """What became of the workers, if that is behind an error."""
    workers = batches._workers
    if watch.hung:
        awaited = batches._task_info.get(batches._rcvd_idx, ())[:1]
        seconds = f"no batch came for too long ({watch.timeout:g} seconds)"
        return LostReader(f"{seconds}: the storage or a reading process hangs", [*awaited])
    if re.search("shared memory|unable to mmap", str(error)):
        return LostReader("shared memory (/dev/shm) is full", [], memory=True)
    for worker in workers:
        worker.join(0.1)  # a signal may have come just now
    dead = {number: worker.exitcode for number, worker in enumerate(workers) if worker.exitcode is not None}
    if not dead:
        return None
    number, code = next(iter(dead.items()))
    if code < 0 and signal.Signals(-code).name == "SIGBUS":
        return LostReader("shared memory (/dev/shm) is full", [number], memory=True)
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    hint = ": often memory ran out" if how.endswith("SIGKILL") else ""
    return LostReader(f"a process that reads images was lost ({how}){hint}", [*dead])


def _abandon(batches: Any) -> None:
    """End workers that may be stopped or in the midst of writing, and wait for nothing that waits for them."""
    _kill(batches._workers)
    for worker in batches._workers:
        worker.join(5)
    for queue in batches._index_queues:
        queue.cancel_join_thread()
    batches._shutdown = True  # torch's own would wait for a thread that reads what they were writing
    if batches._worker_pids_set:
        batches._worker_pids_set = False
        signal_handling._remove_worker_pids(id(batches))  # type: ignore[attr-defined]  # it is there, as torch's own
    if hasattr(batches, "_pin_memory_thread_done_event"):
        batches._pin_memory_thread_done_event.set()


def _kill(workers: list[BaseProcess]) -> None:
    for worker in workers:
        if worker._parent_pid == os.getpid():  # type: ignore[attr-defined]  # not in a process that was forked since
            with suppress(OSError, ValueError):
                worker.kill()


@contextmanager
def _no_handler() -> Iterator[None]:
    """Inside, torch may set its handler of SIGCHLD; afterwards there is none of torch's."""
    number = getattr(signal, "SIGCHLD", None)  # Windows has none, and torch no handler there
    before = number and signal.getsignal(number)
    try:
        yield
    finally:
        if number and threading.current_thread() is threading.main_thread():
            is_torchs = getattr(before, "__module__", "").startswith("torch.utils.data")
            signal.signal(number, signal.SIG_DFL if is_torchs or before is None else before)
