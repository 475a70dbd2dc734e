"""What a run does when it is told something: a signal ends it after the step under way, or has it save and go on."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

import torch
from lightning.fabric import Fabric

from ssl_vit.errors import StoppedError
from ssl_vit.process import NOTICES, STOPS

log = logging.getLogger("ssl_vit")

_NOTICED = {"save": "going on", "stop": "stopping", "requeue": "stopping, to be started again by Slurm"}


class Told(NamedTuple):
    """What the processes of a run were told since the step before."""

    save: bool
    stop: bool


class StopSignals:
    """A signal to stop is remembered while steps are taken, and is Ctrl-C before and after; a second one ends at once.

    Notices (SIGUSR1, SIGUSR2) are remembered from the start of a run to its end. on_notice: see ``train.on_notice``.
    """

    def __init__(self, on_notice: str = "save") -> None:
        self.received: signal.Signals | None = None
        self.requeue = False  # whether Slurm is to be asked to start the job again
        self._on_notice, self._noticed, self._training = on_notice, False, False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Inside, signals are heard here; afterwards by whoever heard them before. A thread beside hears none."""
        before = {}
        if threading.current_thread() is threading.main_thread():
            kept = {number for number in (*STOPS, *NOTICES) if not _is_nohup(number)}
            before = {number: signal.signal(number, self._note) for number in kept}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, steps are taken: a signal to stop waits for the end of the one under way."""
        self._training = True
        try:
            with self.heard():
                yield
        finally:
            self._training = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number in NOTICES:
            self._noticed = True
            log.warning("%s: saving after this step, then %s", name, _NOTICED[self._on_notice])
        elif not self._training:
            raise KeyboardInterrupt
        elif self.received is not None:
            os._exit(128 + number)
        else:
            self.received = signal.Signals(number)
            log.warning("%s: finishing this step, then saving; once more stops at once", name)

    def asked(self, fabric: Fabric) -> Told:
        """What any rank was told: all ranks ask together, and save and stop at the same step."""
        noticed, self._noticed = self._noticed, False
        received = self.received is not None
        if fabric.world_size > 1:
            told = torch.tensor([int(noticed), int(received)], device=fabric.device)
            torch.distributed.all_reduce(told)
            noticed, received = (count > 0 for count in told.tolist())
        if received:
            self.received = self.received or signal.SIGTERM
        stop = received or (noticed and self._on_notice != "save")
        self.requeue = self.requeue or (noticed and self._on_notice == "requeue")
        return Told(noticed or stop, stop)


def _is_nohup(number: int) -> bool:
    """Whether a closed terminal is to be ignored, as ``nohup`` has asked for."""
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN


@contextmanager
def stoppable(when: str) -> Iterator[None]:
    """StoppedError, with when that was and what to do, where Ctrl-C or another signal stops what is done inside."""
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError(f"stopped {when}") from None


def requeue() -> None:
    """Have Slurm start this job again; where that fails, the log says so and what to do."""
    job = os.environ.get("SLURM_JOB_ID", "")
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False)
        problem = done.stderr.strip() or f"exit code {done.returncode}" if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        log.error("scontrol requeue %s failed (%s): start the job again yourself", job, problem)
    else:
        log.info("scontrol requeue %s: Slurm starts this job again, and it goes on with the run", job)
