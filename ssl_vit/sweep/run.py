"""A sweep at work: one cell after the other, each a run in a process of its own, stopped early where it is behind."""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from ssl_vit import plugins
from ssl_vit.errors import RunFailed, StoppedError
from ssl_vit.process import STOPS, die_with_parent
from ssl_vit.sweep.plan import SweepPlan
from ssl_vit.sweep.progress import Watched
from ssl_vit.sweep.result import Result, result_of, write_result
from ssl_vit.sweep.study import STOPPED, Cell, Study

log = logging.getLogger("ssl_vit")

_POLL = 1.0  # seconds between two looks at a run's scores
_PROGRAM = (sys.executable, "-m", "ssl_vit", "pretrain")


def sweep(plan: SweepPlan, out: Path) -> Result:
    """Run what is left of a sweep's cells, and say what came of all; other processes may do the same at the same time.

    Raises:
        UserError: the folder holds another sweep. StoppedError: a signal; the same command goes on.
        RunFailed: not one cell came to its end.
    """
    study = Study(plan, out)
    log.info("%s: %d cells (%s), compared by %s", out, plan.cells, plan.sampler, plan.score)
    with _stops() as told:
        while (cell := study.next_cell()) is not None:
            log.info("%s: %s", cell.folder, ", ".join(f"{key}={value}" for key, value in cell.params.items()))
            try:
                _run(study, cell, told)
            finally:
                cell.let_go()
            write_result(result_of(plan, study.cells()), out)
    result = result_of(plan, study.cells())
    write_result(result, out)
    if not result.lines:
        raise RunFailed(f"{out}: not one cell has a score; {result.failures() or 'others are still at work'}")
    return result


def _run(study: Study, cell: Cell, told: list[int]) -> None:
    """Run a cell to its end, or stop it; a signal to the sweep stops it too, and leaves it to be gone on with."""
    watched = Watched(cell.folder, study.plan.score)
    said = cell.folder.with_suffix(".log")
    with said.open("ab") as file:
        child = subprocess.Popen(
            _command(study.plan, cell), stdin=subprocess.DEVNULL, stdout=file, stderr=file, preexec_fn=_with_us()
        )
    behind = False
    while child.poll() is None:
        if told:
            child.send_signal(signal.SIGTERM)
            child.wait()
            break
        for percent, score in watched.news():
            behind = behind or cell.is_behind(percent, score)
        if behind:
            child.send_signal(signal.SIGTERM)
            child.wait()
        else:
            time.sleep(_POLL)
    if told and child.returncode != 0:
        name = signal.Signals(told[0]).name
        raise StoppedError(f"{name}: stopped; to go on, give the same command again")
    _note_end(study, cell, watched, child.returncode, behind, said)


def _note_end(study: Study, cell: Cell, watched: Watched, code: int, behind: bool, said: Path) -> None:
    for percent, score in watched.news():
        cell.trial.report(score, percent)
    if code == 0 and watched.last is not None:
        study.done(cell, watched.last)
    elif behind and code in (0, 143):
        study.done(cell, None, STOPPED)
        log.info("%s: stopped early, behind the others' median; --resume of pretrain goes on with it", cell.folder)
    else:
        why = _last_line(said) if code else f"it wrote no {study.plan.score}"
        study.done(cell, None, why)
        log.warning("%s: failed (%s); the sweep goes on, and tries it again when it is started again", cell.folder, why)


def _command(plan: SweepPlan, cell: Cell) -> list[str]:
    """The command of a cell: the run is begun, or gone on with."""
    command = [*_PROGRAM, "--out", str(cell.folder)]
    if (cell.folder / "config.yaml").exists():
        from ssl_vit.config import load_config

        path = load_config([cell.folder / "config.yaml"]).data.path
        command += [*([path] if isinstance(path, str) else path), "--resume"]
    else:
        command += _data(plan)
        for setting in plan.settings(cell.params):
            if not setting.startswith("data.path="):
                command += ["--set", setting]
    return [*command, *(word for plugin in plugins.in_use() for word in ("--plugin", plugin.place))]


def _data(plan: SweepPlan) -> Sequence[str]:
    from ssl_vit.config import load_config

    path = load_config(sets=[f"data.path={plan.shared['data.path']}"]).data.path
    return [path] if isinstance(path, str) else path


def _with_us() -> Callable[[], None] | None:
    """A run never outlives the sweep that would go on with it, where the system can see to that."""
    return die_with_parent if sys.platform == "linux" else None


@contextlib.contextmanager
def _stops() -> Iterator[list[int]]:
    """Inside, a signal to stop is noted, for the run that is under way to be stopped first."""
    told = list[int]()

    def note(number: int, _: FrameType | None) -> None:
        told.append(number)

    before = {number: signal.signal(number, note) for number in STOPS}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_line(said: Path) -> str:
    lines = [line for line in said.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("ssl-vit: error: ")[:300] if lines else "it said nothing"
