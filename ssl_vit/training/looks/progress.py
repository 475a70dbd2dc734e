"""The line that a person watches: loss, images/s, share of time spent waiting for data, memory, time left."""

from __future__ import annotations

import time

from ssl_vit.progress import LOG_EVERY, memory_gb, progress_bar
from ssl_vit.terminal import is_quiet, tell
from ssl_vit.training.looks.look import Look
from ssl_vit.training.step import Learner, Outcome

SMOOTH = 0.95  # weight of the past in the running means of times


class ProgressLine(Look):
    """A bar on a terminal, else a line now and then."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._bar = progress_bar("step {task.completed}/{task.total}")
        self._terminal = not self._bar.disable
        self._wait = self._busy = 0.0  # running means, seconds a step
        self._mark = self._spoken = time.monotonic()

    def begin(self, learner: Learner, start: int) -> None:
        """The bar starts where the run does."""
        self._mark = time.monotonic()
        self._task = self._bar.add_task("", total=learner.total, completed=start, numbers="")
        if self._terminal:
            self._bar.start()

    def before_step(self, step: int) -> None:
        """Since the last step's end nothing was done but wait for this batch."""
        self._wait = self._mean(self._wait, self._lap())

    def after_step(self, outcome: Outcome) -> None:
        """Show it."""
        self._busy = self._mean(self._busy, self._lap())
        done, total, seconds = outcome.progress.step + 1, outcome.progress.total, self._wait + self._busy
        added = "".join(f" + {name} {float(value):.3f}" for name, value in outcome.penalties.items())
        numbers = (
            f"loss {outcome.loss:.3f}{added} · {self._batch_size / seconds:.0f} images/s · "
            f"data wait {100 * self._wait / seconds:.0f} % · {memory_gb():.1f} GB"
        )
        if self._terminal:
            self._bar.update(self._task, completed=done, numbers=numbers)
        elif not is_quiet() and (self._mark - self._spoken > LOG_EVERY or done == total):
            self._spoken = self._mark
            left = (total - done) * seconds / 60
            tell(f"step {done}/{total} · {numbers} · {left:.1f} min left")

    def end(self) -> None:
        """Leave the last numbers standing."""
        if self._terminal:
            self._bar.stop()

    def _lap(self) -> float:
        now = time.monotonic()
        lap, self._mark = now - self._mark, now
        return lap

    @staticmethod
    def _mean(old: float, new: float) -> float:
        return SMOOTH * old + (1 - SMOOTH) * new if old else new
