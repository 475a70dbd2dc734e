"""A sweep's cells, kept by Optuna in a file that many processes and machines share."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from ssl_vit.errors import UserError
from ssl_vit.files import alone
from ssl_vit.sweep.plan import SweepPlan

try:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, TrialState
except ImportError as _error:
    raise UserError("a sweep needs Optuna; install it: pip install 'ssl_vit[sweep]'") from _error

JOURNAL, LOCK, CELLS = "sweep.journal", "sweep.lock", "cells"
_CELL, _WHY, _PLAN = "cell", "why", "plan"  # attributes: of a trial the first two, of the study the last
_SURE, _OTHERS = 20, 4  # percent of a run that each cell gets, and cells that run to their end before any is stopped


class Cell:
    """A cell is a run with settings of its own, in a folder that this process alone works on."""

    def __init__(self, trial: optuna.Trial, folder: Path, params: Mapping[str, Any], lock: ExitStack) -> None:
        self.trial, self.folder, self.params, self._lock = trial, folder, params, lock

    def is_behind(self, percent: int, score: float) -> bool:
        """Note the score at so many percent of the run; whether the others' median there is better."""
        self.trial.report(score, percent)
        return bool(self.trial.should_prune())

    def let_go(self) -> None:
        """Leave the cell as it is; whoever asks next goes on with it."""
        self._lock.close()


class Study:
    """The study hands out cells, each to one process at a time, and knows how those before ended.

    Raises:
        UserError: the folder holds a sweep of other settings.
    """

    def __init__(self, plan: SweepPlan, out: Path) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("optuna").setLevel(logging.ERROR)
        self.plan, self.out = plan, out
        (out / CELLS).mkdir(parents=True, exist_ok=True)
        with self._alone():
            storage = JournalStorage(JournalFileBackend(str(out / JOURNAL)))
            self._study = optuna.create_study(
                storage=storage, study_name="sweep", direction="maximize", load_if_exists=True, pruner=_pruner(plan)
            )
            kept = self._study.user_attrs.get(_PLAN)
            if kept not in (None, plan.text()):
                raise UserError(f"{out}: holds a sweep of other settings; choose another --out, or restore its file")
            if kept is None:
                self._study.set_user_attr(_PLAN, plan.text())
                if plan.sampler == "grid":
                    for params in plan.grid()[: plan.cells]:
                        self._study.enqueue_trial(params)
            self._try_again()

    def next_cell(self) -> Cell | None:
        """Take the next cell: one that whoever had it has left, else a new one; None where all are done or at work."""
        with self._alone():
            for left in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if (lock := self._lock(left.number)) is not None:
                    return self._cell(optuna.Trial(self._study, left._trial_id), lock)
            waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            begun = len(self._study.get_trials(deepcopy=False)) - len(waiting)
            if not waiting and (self.plan.sampler == "grid" or begun >= self.plan.cells):
                return None
            self._study.sampler = self._sampler(begun)
            trial = self._study.ask()
            lock = self._lock(trial.number)
            assert lock is not None
            return self._cell(trial, lock)

    def done(self, cell: Cell, score: float | None, why: str = "") -> None:
        """Note a cell's end: its score; stopped early ("why" says it, no score); or failed."""
        if score is not None:
            self._study.tell(cell.trial, score)
        else:
            cell.trial.set_user_attr(_WHY, why)
            stopped = why == STOPPED
            self._study.tell(cell.trial, state=TrialState.PRUNED if stopped else TrialState.FAIL)
        cell.let_go()

    def cells(self) -> list[dict[str, Any]]:
        """Every cell, the newest try of each: its folder, settings, state, scores by percent of the run, and why."""
        found = {self._name(trial): _told(trial) for trial in self._study.get_trials(deepcopy=False)}
        return [{"cell": f"{CELLS}/{name}", **told} for name, told in sorted(found.items())]

    def _alone(self) -> AbstractContextManager[None]:
        return alone(self.out / LOCK, str(self.out))

    def _lock(self, number: int) -> ExitStack | None:
        """A cell's lock; None where another process holds it."""
        stack = ExitStack()
        try:
            stack.enter_context(alone(self.out / CELLS / f".{number:04}.lock", "", wait=False))
        except UserError:
            return None
        return stack

    def _cell(self, trial: optuna.Trial, lock: ExitStack) -> Cell:
        plan = self.plan
        params: dict[str, Any] = {key: trial.suggest_categorical(key, values) for key, values in plan.lists.items()}
        for key, each in plan.ranges.items():
            if each.whole:
                params[key] = trial.suggest_int(key, int(each.low), int(each.high), log=each.log)
            else:
                params[key] = trial.suggest_float(key, each.low, each.high, log=each.log)
        name = self._name(trial)
        trial.set_user_attr(_CELL, name)
        return Cell(trial, self.out / CELLS / name, params, lock)

    def _name(self, trial: optuna.Trial | FrozenTrial) -> str:
        """A cell's name: a second try has that of the first."""
        return str(trial.user_attrs.get(_CELL, f"{trial.number:04}"))

    def _try_again(self) -> None:
        """What failed is tried again by whoever starts the sweep again, in the same folder."""
        trials = self._study.get_trials(deepcopy=False)
        newest = {self._name(trial): trial for trial in trials}
        for name, trial in newest.items():
            if trial.state == TrialState.FAIL:
                self._study.enqueue_trial(trial.params, user_attrs={_CELL: name})

    def _sampler(self, begun: int) -> optuna.samplers.BaseSampler:
        """Seeded by how many cells have begun, so that two processes never draw alike."""
        seed = (self.plan.options.seed * 1_000_003 + begun) % 2**32
        if self.plan.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        return optuna.samplers.RandomSampler(seed=seed)


STOPPED = "stopped early"


def _pruner(plan: SweepPlan) -> optuna.pruners.BasePruner:
    if not plan.options.stop_early:
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=_OTHERS, n_warmup_steps=_SURE)


_STATES = {
    TrialState.RUNNING: "begun",
    TrialState.WAITING: "waiting",
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: STOPPED,
    TrialState.FAIL: "failed",
}


def _told(trial: FrozenTrial) -> dict[str, Any]:
    params = trial.params or trial.system_attrs.get("fixed_params", {})
    return {
        "settings": dict(params),
        "state": _STATES[trial.state],
        "score": trial.value if trial.state == TrialState.COMPLETE else None,
        "by_percent": {str(percent): score for percent, score in sorted(trial.intermediate_values.items())},
        "why": trial.user_attrs.get(_WHY, ""),
    }
