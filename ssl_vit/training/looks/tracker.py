"""A run's numbers and pictures, sent to a tracker of experiments that the user has asked for."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ssl_vit.errors import UserError
from ssl_vit.files import write_atomically

log = logging.getLogger("ssl_vit")

KEPT = "tracker.txt"  # in RUN: by what the tracker knows it, so that a resumed run goes on there
PROJECT = "ssl_vit"
_MODULES: Mapping[str, str] = {"wandb": "wandb", "mlflow": "mlflow", "comet": "comet_ml"}


class Tracker(Protocol):
    """What a run tells a tracker."""

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name, of a step."""

    def picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """A picture [H, W, 3]."""

    def end(self) -> None:
        """Nothing more will come."""


def check_tracker(name: str | None) -> None:
    """UserError where a tracker is asked for that isn't installed."""
    if name is not None and importlib.util.find_spec(_MODULES[name]) is None:
        raise UserError(f"health.tracker {name}: not installed; pip install 'ssl_vit[{name}]', or set it to null")


class Told:
    """A tracker that may fail: the first time this is said, and from then on the run goes without it."""

    def __init__(self, name: str, run: Path, settings: Mapping[str, Any]) -> None:
        self._name, self._tracker = name, None
        with self._harmless():
            self._tracker = _TRACKERS[name](run, settings)

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Tell it numbers of a step."""
        if self._tracker is not None:
            with self._harmless():
                self._tracker.numbers(values, step)

    def picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """Show it a picture [H, W, 3]."""
        if self._tracker is not None:
            with self._harmless():
                self._tracker.picture(name, picture, step)

    def end(self) -> None:
        """Let it send what it still has."""
        if self._tracker is not None:
            with self._harmless():
                self._tracker.end()

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            told = " ".join(str(error).split()) or type(error).__name__
            log.warning("%s can't be told (%s): going on without it", self._name, told[:300])
            self._tracker = None


class _Wandb:
    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        self._wandb: Any = importlib.import_module("wandb")
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        before = _known(run)
        options = {"id": before, "resume": "allow"} if before else {}
        self._run = self._wandb.init(project=project, name=run.name, dir=str(run), config=dict(settings), **options)
        _keep(run, self._run.id)

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        self._run.log({name: self._wandb.Image(picture)}, step=step)

    def end(self) -> None:
        self._run.finish()


class _Mlflow:
    """Into MLFLOW_TRACKING_URI, or without one into a file beside the run's folder."""

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        self._mlflow: Any = importlib.import_module("mlflow")
        if "MLFLOW_TRACKING_URI" not in os.environ:
            self._mlflow.set_tracking_uri(f"sqlite:///{(run.absolute().parent / 'mlflow.db').as_posix()}")
        if "MLFLOW_EXPERIMENT_NAME" not in os.environ:
            self._mlflow.set_experiment(PROJECT)
        before = _known(run)
        active = self._mlflow.start_run(run_id=before) if before else self._mlflow.start_run(run_name=run.name)
        _keep(run, active.info.run_id)
        if not before:
            self._mlflow.log_params({key: str(value)[:500] for key, value in settings.items()})

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        self._mlflow.log_image(picture, f"{name}/{step:09d}.png")

    def end(self) -> None:
        self._mlflow.end_run()


class _Comet:
    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        comet: Any = importlib.import_module("comet_ml")
        project = os.environ.get("COMET_PROJECT_NAME", PROJECT)
        before = _known(run)
        options = {"experiment_key": before, "mode": "get_or_create"} if before else {}
        self._experiment = comet.start(project_name=project, **options)
        _keep(run, self._experiment.get_key())
        self._experiment.set_name(run.name)
        self._experiment.log_parameters(dict(settings))

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        self._experiment.log_metrics(dict(values), step=step)

    def picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        self._experiment.log_image(picture, name=name, step=step)

    def end(self) -> None:
        self._experiment.end()


_TRACKERS: Mapping[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "wandb": _Wandb,
    "mlflow": _Mlflow,
    "comet": _Comet,
}


def _known(run: Path) -> str | None:
    path = run / KEPT
    return path.read_text(encoding="utf-8").strip() or None if path.is_file() else None


def _keep(run: Path, known: str) -> None:
    write_atomically(run / KEPT, lambda staged: staged.write_text(f"{known}\n", encoding="utf-8"))
