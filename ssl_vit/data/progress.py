"""What a person watches while features are made: images a second and the time left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger("ssl_vit")
LOG_EVERY = 30.0  # seconds between lines where there is no terminal


Advance = Callable[[int], None]  # called with the number of images that were done since the last call


@contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Advance]:
    """A bar on a terminal, which leaves when it is full, else a line in the log now and then. Counts images."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description} {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.fields[rate]:.0f} images/s"),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    started = spoken = time.monotonic()
    first = done

    def advance(images: int) -> None:
        nonlocal done, spoken
        done += images
        now = time.monotonic()
        rate = (done - first) / max(now - started, 1e-9)
        bar.update(task, advance=images, rate=rate)
        if not console.is_terminal and now - spoken > LOG_EVERY:
            spoken = now
            minutes = (total - done) / max(rate, 1e-9) / 60
            log.info("%s %d/%d · %.0f images/s · %.1f min left", what, done, total, rate, minutes)

    with bar:
        task = bar.add_task(what, total=total, completed=done, rate=0.0)
        yield advance
