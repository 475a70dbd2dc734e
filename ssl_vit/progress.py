"""What a person watches meanwhile: a bar on a terminal, else a plain line now and then."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Protocol, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ssl_vit.system import most_memory
from ssl_vit.terminal import Lasting, is_plain, is_quiet

log = logging.getLogger("ssl_vit")
LOG_EVERY = 30.0  # seconds between lines where there is no terminal


def progress_bar(label: str, *, transient: bool = False) -> Progress:
    """A bar on stderr with a label, the task's field ``numbers`` and the time left.

    It shows nothing off a terminal, with NO_COLOR and where it is to be quiet.
    label: rich's template of a task; transient: whether the bar leaves when it is full.
    """
    console = Console(file=cast(IO[str], Lasting(sys.stderr)))
    return Progress(
        TextColumn(label),
        BarColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=transient,
        disable=not console.is_terminal or is_plain() or is_quiet(),
    )


class Advance(Protocol):
    """Called with the images that were done since the last call, and the seconds of it spent waiting for them."""

    def __call__(self, images: int, waited: float = 0.0) -> None:
        """Show it."""


@contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Advance]:
    """A bar on a terminal, which leaves when it is full, else a line in the log now and then. Counts images."""
    bar = progress_bar("{task.description} {task.completed}/{task.total}", transient=True)
    started = spoken = time.monotonic()
    first, idle = done, 0.0

    def advance(images: int, waited: float = 0.0) -> None:
        nonlocal done, spoken, idle
        done, idle = done + images, idle + waited
        now = time.monotonic()
        rate = (done - first) / max(now - started, 1e-9)
        numbers = f"{rate:.0f} images/s"
        if idle:
            numbers += f" · data wait {100 * idle / max(now - started, 1e-9):.0f} %"
        bar.update(task, advance=images, numbers=numbers)
        if bar.disable and now - spoken > LOG_EVERY:
            spoken = now
            minutes = (total - done) / max(rate, 1e-9) / 60
            log.info("%s %d/%d · %s · %.1f min left", what, done, total, numbers, minutes)

    with bar:
        task = bar.add_task(what, total=total, completed=done, numbers="")
        yield advance


def memory_gb() -> float:
    """The most memory held so far, in GB: of the GPU where there is one, else of this process."""
    from ssl_vit import device  # it imports torch

    return (device.most_held() or most_memory()) / 1e9
