"""Stopping when asked: SIGTERM and Ctrl-C end a run after the step under way, with everything saved."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from lightning.fabric import Fabric

log = logging.getLogger("ssl_vit")


class StopSignals:
    """The first signal is remembered, a second one ends the process at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, signals are heard here; afterwards by whoever heard them before."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = signal.Signals(number)
        log.warning("%s: finishing this step, then saving; once more stops at once", self.received.name)

    def asked(self, fabric: Fabric) -> bool:
        """Whether any rank was told to stop: all ranks ask together, and stop at the same step."""
        if fabric.world_size == 1:
            return self.received is not None
        told = torch.tensor(int(self.received is not None), device=fabric.device)
        torch.distributed.all_reduce(told)
        if not int(told):
            return False
        self.received = self.received or signal.SIGTERM
        return True
