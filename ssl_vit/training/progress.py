"""The line that a person watches: loss, images/s, share of time spent waiting for data, memory, time left."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from lightning import Callback, Trainer

from ssl_vit.progress import LOG_EVERY, progress_bar
from ssl_vit.training.module import Pretraining

SMOOTH = 0.95  # weight of the past in the running means of times


class ProgressLine(Callback):
    """A bar on a terminal, else a line now and then."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._bar = progress_bar("step {task.completed}/{task.total}")
        self._terminal = not self._bar.disable
        self._wait = self._busy = 0.0  # running means, seconds a step
        self._mark = self._spoken = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """The bar starts where the run does."""
        self._mark = time.monotonic()
        self._task = self._bar.add_task("", total=trainer.max_steps, completed=trainer.global_step, numbers="")
        if self._terminal:
            self._bar.start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Since the last step's end nothing was done but wait for this batch."""
        self._wait = self._mean(self._wait, self._lap())

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Show it."""
        self._busy = self._mean(self._busy, self._lap())
        module: Pretraining = pl_module
        seconds = self._wait + self._busy
        numbers = (
            f"loss {module.loss:.3f} · {self._batch_size / seconds:.0f} images/s · "
            f"data wait {100 * self._wait / seconds:.0f} % · {memory_gb():.1f} GB"
        )
        if self._terminal:
            self._bar.update(self._task, completed=trainer.global_step, numbers=numbers)
        elif self._mark - self._spoken > LOG_EVERY or trainer.global_step == trainer.max_steps:
            self._spoken = self._mark
            left = (trainer.max_steps - trainer.global_step) * seconds
            print(
                f"step {trainer.global_step}/{trainer.max_steps} · {numbers} · {left / 60:.1f} min left",
                file=sys.stderr,
                flush=True,
            )

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
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


def memory_gb() -> float:
    """Most memory held so far, GB: the GPU's where there is one, else this process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
