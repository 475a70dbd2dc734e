"""Trackers of experiments: what they are told, by modules that stand in for theirs, and that they can't end a run."""

from __future__ import annotations

import json
import logging
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest

from ssl_vit.cli import main
from ssl_vit.errors import UserError
from ssl_vit.training.looks import tracker
from ssl_vit.training.looks.tracker import Told, check_tracker
from tests.runs import command

NAMES = ("wandb", "mlflow", "comet")
PICTURE = np.zeros((4, 6, 3), np.uint8)


class Heard(list[tuple[str, Any]]):
    """What a tracker was told, in order; ``breaks`` names the call from which on it fails."""

    breaks = ""

    def hear(self, name: str, value: Any = None) -> None:
        if name == self.breaks:
            raise ConnectionError(f"no route\nto {name}")
        self.append((name, value))


def all_numbers(values: dict[str, Any]) -> bool:
    return all(isinstance(value, float) for value in values.values())


def stand_in(name: str, heard: Heard) -> ModuleType:
    """A module with the calls that the tracker's own has."""
    module: Any = ModuleType({"comet": "comet_ml"}.get(name, name))
    module.__spec__ = ModuleSpec(module.__name__, None)  # as of one that is installed
    if name == "wandb":
        run = SimpleNamespace(
            id="id-1",
            log=lambda values, step: heard.hear("numbers" if all_numbers(values) else "picture", (values, step)),
            finish=lambda: heard.hear("end"),
        )
        module.Image = lambda picture: picture.shape
        module.init = lambda **options: heard.hear("begin", options) or run
    elif name == "mlflow":
        module.set_tracking_uri = lambda address: heard.append(("address", address))
        module.set_experiment = lambda project: None
        module.start_run = lambda **options: (
            heard.hear("begin", options) or SimpleNamespace(info=SimpleNamespace(run_id="id-1"))
        )
        module.log_params = lambda values: heard.append(("settings", values))
        module.log_metrics = lambda values, step: heard.hear("numbers", (values, step))
        module.log_image = lambda picture, file: heard.hear("picture", (file, picture.shape))
        module.end_run = lambda: heard.hear("end")
    else:
        experiment = SimpleNamespace(
            get_key=lambda: "id-1",
            set_name=lambda title: None,
            log_parameters=lambda values: heard.append(("settings", values)),
            log_metrics=lambda values, step: heard.hear("numbers", (values, step)),
            log_image=lambda picture, name, step: heard.hear("picture", (name, picture.shape, step)),
            end=lambda: heard.hear("end"),
        )
        module.start = lambda **options: heard.hear("begin", options) or experiment
    return module


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    found = Heard()
    for name in NAMES:
        module = stand_in(name, found)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for variable in ("WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "COMET_PROJECT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    return found


def told_all(name: str, run: Path) -> None:
    told = Told(name, run, {"optim.lr": 0.1})
    told.numbers({"loss": 1.5}, 10)
    told.picture("image", PICTURE, 20)
    told.end()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_told_settings_numbers_and_pictures(heard: Heard, tmp_path: Path, name: str) -> None:
    told_all(name, tmp_path)
    assert [what for what, _ in heard if what not in ("address", "settings")] == ["begin", "numbers", "picture", "end"]
    said = json.dumps(heard)
    assert "optim.lr" in said
    assert '[{"loss": 1.5}, 10]' in said
    assert "[4, 6, 3]" in said
    assert "20" in said


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_goes_on_where_it_was(heard: Heard, tmp_path: Path, name: str) -> None:
    told_all(name, tmp_path)
    first = dict(heard)["begin"]
    heard.clear()
    told_all(name, tmp_path)
    assert "id-1" not in first.values()
    assert "id-1" in dict(heard)["begin"].values()


@pytest.mark.parametrize("breaks", ["begin", "numbers", "picture", "end"])
@pytest.mark.parametrize("name", NAMES)
def test_one_that_fails_is_said_once_and_left_alone(
    heard: Heard, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, breaks: str
) -> None:
    heard.breaks = breaks
    with caplog.at_level(logging.WARNING, "ssl_vit"):
        told_all(name, tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{name} can't be told (no route to {breaks}): going on without it"
    ]
    order = ["begin", "numbers", "picture", "end"]
    assert [what for what, _ in heard if what in order] == order[: order.index(breaks)]


def test_mlflow_keeps_a_file_beside_the_run_unless_it_is_told_where(
    heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told_all("mlflow", tmp_path / ".")
    assert dict(heard)["address"] == f"sqlite:///{tmp_path.parent.as_posix()}/mlflow.db"
    heard.clear()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mine")
    told_all("mlflow", tmp_path)
    assert "address" not in dict(heard)


def test_the_setting_knows_each_of_them() -> None:
    from ssl_vit.config import HealthConfig

    named, _ = get_args(HealthConfig.model_fields["tracker"].annotation)
    assert set(get_args(named)) == set(NAMES) == set(tracker._TRACKERS)


def test_a_run_tells_its_tracker_numbers_and_pictures_and_outlives_it(
    heard: Heard, pictures: Path, tmp_path: Path
) -> None:
    """A real run, whose tracker hears of everything until the network is gone."""
    heard.breaks = "end"
    run = tmp_path / "run"
    settings = {"data__workers": 0, "train__epochs": 2, "health__tracker": "wandb", "health__report": True}
    argv = command(pictures / "train", run, **settings)
    assert main(argv) == 0
    numbers = [value for what, value in heard if what == "numbers"]
    assert [step for _, step in numbers][:1] == [0]
    assert any({"loss", "lr", "grad_norm"} <= set(values) for values, _ in numbers)
    assert {name for what, (values, _) in heard[1:] if what == "picture" for name in values} >= {"report/patches"}
    assert (run / "train.log").read_text().count("wandb can't be told (no route to end)") == 1
    assert (run / "COMPLETE").exists()
    assert dict(heard)["begin"]["config"]["train.epochs"] == 2


def test_one_that_is_not_installed_is_refused_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        return None

    monkeypatch.setattr("importlib.util.find_spec", nothing)
    check_tracker(None)
    with pytest.raises(UserError, match=r"health\.tracker comet: not installed; pip install 'ssl_vit\[comet\]'"):
        check_tracker("comet")
