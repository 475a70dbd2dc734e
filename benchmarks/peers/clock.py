"""CPU time and memory of some training steps, measured in the process that trains, in the same way for every peer.

A driver is run as `PYTHON DRIVER WHAT PRECISION PHOTOS [CHECKOUT]` and prints a line of JSON. WHAT is step: training on
views that are there already; run: from the JPEGs of PHOTOS, read by one worker; data: these alone, with no step; or
update: clip, optimiser and teacher alone, with gradients that are there already. CHECKOUT has the official DINO code.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from cpu import cpu_seconds
from torch import Tensor

STEPS = {"step": (1, 2), "run": (2, 4), "data": (8, 32), "update": (3, 20)}  # to warm up, and to be timed


class Measured(BaseException):
    """Enough steps have been seen: ends the run from within, whatever runs it."""


class Clock:
    """Told when a step begins; after the last one raises `Measured`, and `found` has what was measured.

    Memory is the most that the process held since the first step began, less what it held then: activations, gradients
    and the optimiser's state, but neither weights nor libraries.
    """

    def __init__(self, warm: int, steps: int) -> None:
        self.warm, self.steps, self.begun = warm, steps, 0
        self.loss: float | None = None
        self.found: dict[str, float | None] = {}

    @property
    def batches(self) -> int:
        """So many must be there."""
        return self.warm + self.steps + 1

    def tick(self) -> None:
        """A step begins, and the one before, with all that belongs to it, has ended."""
        if self.begun == 0:
            Path("/proc/self/clear_refs").write_text("5")  # the most memory held is counted from here
            self.held = _memory("VmRSS")
        if self.begun == self.warm:
            self.started, self.wall = cpu_seconds(), time.perf_counter()
        if self.begun == self.warm + self.steps:
            seconds = cpu_seconds() - self.started
            self.found = {
                "ms": 1000 * seconds / self.steps,
                "cpu_share": seconds / (time.perf_counter() - self.wall),
                "net_mb": (_memory("VmHWM") - self.held) / 1e6,
                "loss": self.loss,
            }
            raise Measured
        self.begun += 1

    def see(self, loss: Tensor) -> None:
        """The first is kept: with random weights near ln 65536 = 11.09 for every peer that is set up alike."""
        if self.loss is None:
            self.loss = float(loss.detach())


class Ticks:
    """Tells a clock; to be mixed into the Callback of whichever Lightning a peer uses."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def on_train_batch_start(self, *_: Any) -> None:
        self.clock.tick()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.clock.see(outputs["loss"])


class Repeated:
    """A loader that hands over the same batch again and again."""

    def __init__(self, batch: Any, times: int) -> None:
        self.batch, self.times = batch, times

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Iterator[Any]:
        return repeat(self.batch, self.times)


def measure(train: Callable[[Clock, str, str, str], None]) -> None:
    """Run ``train(clock, what, precision, photos)`` with the words of the command line and print what was found."""
    what, precision, photos = sys.argv[1:4]
    clock = Clock(*STEPS[what])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        train(clock, what, precision, photos)
    except Measured:
        print(f"\n{json.dumps(clock.found)}", flush=True)  # a bar may stand on the line
    else:
        raise SystemExit(f"ended after {clock.begun} steps, too few to be timed")


def _memory(kind: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{kind}:"))
    return int(line.split()[1]) * 1024
