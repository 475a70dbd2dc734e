"""How long a run takes: as long as it was asked to, by a clock that tests turn, and as it said beforehand."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from ssl_vit.config import ResolvedConfig, load_config
from ssl_vit.data.joined import join
from ssl_vit.data.sources import open_source
from ssl_vit.errors import UserError
from ssl_vit.eval import online
from ssl_vit.run import finish as finishing
from ssl_vit.run import speed
from ssl_vit.run.length import of_resumed
from ssl_vit.run.pretrain import pretrain
from ssl_vit.training import checkpoint, loop
from ssl_vit.training.separation import HeldBack
from tests.runs import SETTINGS, command, ended, finish, losses, program, rows, two_ranks, weights

CHOSEN = ("train.epochs", "train.checkpoint_every", "health.every", "health.knn_every", "data.workers")
SMALL = {key: value for key, value in SETTINGS.items() if key not in CHOSEN} | {"data.workers": 0}


def settings(**more: object) -> dict[str, Any]:
    """Those of a tiny model; more: "train__time" for train.time."""
    given = SMALL | {key.replace("__", "."): value for key, value in more.items()}
    return {key: yaml.safe_load(value) if key == "backbone.args" else value for key, value in given.items()}


class Clock:
    """Stands still but for what is said to take so long."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now, self._patch = 1000.0, patch
        patch.setattr(speed, "time", SimpleNamespace(monotonic=lambda: self.now))

    def takes(self, owner: Any, name: str, seconds: float | Callable[..., float]) -> None:
        original = getattr(owner, name)

        def slow(*given: Any, **named: Any) -> Any:
            self.now += seconds(*given) if callable(seconds) else seconds
            return original(*given, **named)

        self._patch.setattr(owner, name, slow)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """One by which steps, scores, checks, checkpoints and exports take their time."""
    clock = Clock(monkeypatch)
    for module in (speed, loop):
        clock.takes(module, "take_step", 1.0)
    for module in (speed, online):
        clock.takes(module, "extract", lambda backbone, source, *_: 0.02 * len(source))
    clock.takes(HeldBack, "features", 0.3)
    clock.takes(checkpoint, "write_checkpoint", 1.5)
    for module in (speed, finishing):
        clock.takes(module, "hand_over", 4.0)
    return clock


@pytest.mark.parametrize(("time", "whole"), [("2m", True), ("40s", False)])
def test_a_run_ends_when_it_was_asked_to(
    pictures: Path, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, time: str, whole: bool
) -> None:
    begun, asked = clock.now, {"2m": 120.0, "40s": 40.0}[time]
    with caplog.at_level(logging.INFO, "ssl_vit"):
        done = pretrain(pictures / "train", tmp_path / "run", settings(train__time=time), val=str(pictures / "val"))
    assert clock.now - begun == pytest.approx(asked, rel=0.05)
    kept = load_config([tmp_path / "run" / "config.yaml"]).train
    assert (kept.time, kept.step_seconds, kept.steps is None) == (asked / 60, 1.0, whole)
    assert done.steps == kept.length(6) == len(losses(tmp_path / "run"))
    said = (tmp_path / "run" / "train.log").read_text()
    assert f"train.epochs = {kept.epochs}" in said
    assert "at 1 s a step, 6 steps an epoch" in said
    (expected,) = re.findall(r"expected +(\S+): .* steps of 1 s .*; --time (\S+) would halve it", said)
    halves = [60 * (load_config(flags={"data.path": "x", "train.time": each}).train.time or 0) for each in expected]
    assert halves == [pytest.approx(asked, rel=0.05), pytest.approx(asked / 2, rel=0.05)]
    assert sum("loss" in row and "health" not in row for row in rows(tmp_path / "run")) == done.steps


def test_growing_crops_are_measured_at_each_size(pictures: Path, tmp_path: Path, clock: Clock) -> None:
    """A step of half the side takes a quarter of a second and is half of them, beside one of a second."""
    for module in (speed, loop):
        quick = lambda _, batch, *__: -0.75 if batch.views[0].shape[-1] == 16 else 0.0  # noqa: E731 - beside the one
        clock.takes(module, "take_step", quick)
    begun = clock.now
    pretrain(pictures / "train", tmp_path / "run", settings(train__time="2m", train__sizes="16:0.5,32:0.5"))
    assert clock.now - begun == pytest.approx(120.0, rel=0.05)
    kept = load_config([tmp_path / "run" / "config.yaml"]).train
    assert kept.step_seconds == pytest.approx(0.625)


def test_measuring_leaves_no_trace(pictures: Path, tmp_path: Path, clock: Clock) -> None:
    """The same epochs give the same weights, whether they follow from a time or were said."""
    timed = pretrain(pictures / "train", tmp_path / "timed", settings(train__time="70s"))
    kept = load_config([tmp_path / "timed" / "config.yaml"])
    assert timed.steps >= 12
    length = {"train__epochs": kept.train.epochs, "train__steps": kept.train.steps}
    pretrain(pictures / "train", tmp_path / "said", settings(**length))
    assert weights(tmp_path / "timed") == weights(tmp_path / "said")
    assert losses(tmp_path / "timed") == losses(tmp_path / "said")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["said", "timed"]
    again = pretrain(pictures / "train", tmp_path / "timed", settings(train__time="70s"), resume=True)
    assert again.was_complete


def test_a_time_that_is_too_short_names_the_least(pictures: Path, tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(UserError, match=r"train.time: 5s is too short: .*; give at least --time (\d+)s") as refused:
        pretrain(pictures / "train", tmp_path / "run", settings(train__time="5s"))
    assert not (tmp_path / "run").exists()
    least = re.findall(r"--time (\d+s)", str(refused.value))[0]
    assert pretrain(pictures / "train", tmp_path / "run", settings(train__time=least)).steps >= 1


def test_time_and_epochs_are_one_or_the_other(tmp_path: Path) -> None:
    flags = {"data.path": "x", "train.time": "30m"}
    with pytest.raises(UserError, match=r"train.epochs \(--epochs\) and train.time \(--time\) both say how long"):
        load_config(flags=flags | {"train.epochs": "3"})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("train: {epochs: 100}\n")
    train = load_config([recipe], flags=flags).train
    assert (train.time, train.epochs) == (30.0, "auto")
    own = tmp_path / "config.yaml"
    own.write_text("train: {epochs: 7, steps: 33, time: 30.0, step_seconds: 0.5}\n")
    kept = load_config([own], flags=flags).train
    assert (kept.time, kept.epochs, kept.steps, kept.step_seconds) == (30.0, 7, 33, 0.5)
    other = load_config([own], flags=flags | {"train.time": "1h"}).train
    assert (other.time, other.epochs, other.steps, other.step_seconds) == (60.0, "auto", None, None)
    longer = load_config([own], flags={"data.path": "x", "train.epochs": 9}).train
    assert (longer.time, longer.epochs, longer.steps, longer.step_seconds) == (None, 9, None, None)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90s", 1.5), ("30m", 30.0), ("1h", 60.0), ("2h30m", 150.0), ("45", 45.0), (45, 45.0), ("0.5", 0.5), ("1.5h", 90)],
)
def test_times_are_read_as_they_are_written(text: str | int, minutes: float) -> None:
    assert load_config(flags={"data.path": "x", "train.time": text}).train.time == minutes


@pytest.mark.parametrize("text", ["soon", "0m", "-5", "30 parsecs", "m", "1h 30", "true"])
def test_other_times_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^train.time: expected .*\(--time\)$"):
        load_config(flags={"data.path": "x", "train.time": text})


def test_a_resumed_run_says_from_what_it_knows_its_time(whole_run: Path, tmp_path: Path) -> None:
    config = ResolvedConfig.model_validate(load_config([whole_run / "config.yaml"]).model_dump())
    assert of_resumed(config, tmp_path, 6).startswith("30 steps are left; not measured anew")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-000000010.ckpt").touch()
    timed = config.model_copy(update={"train": config.train.model_copy(update={"step_seconds": 2.0})})
    assert of_resumed(timed, tmp_path, 6).startswith("20 steps are left, 40s at the 2 s of")


def test_a_run_s_expected_time_is_said_before_its_first_step(pictures: Path, tmp_path: Path, clock: Clock) -> None:
    pretrain(pictures / "train", tmp_path / "run", settings(train__epochs=8))
    said = (tmp_path / "run" / "train.log").read_text()
    (expected,) = re.findall(r"expected +(\d+)s: 48 steps of 1 s \(2 measured\)", said)
    assert int(expected) == pytest.approx(48 + 1.5 + 0.3 * 5, rel=0.1)
    assert said.index("expected") < said.index("step 10,") if "step 10," in said else True


MEASURED = """
    import sys
    from ssl_vit.cli import main
    from ssl_vit.run import length
    from ssl_vit.run.speed import Speed

    length.measure = lambda *_: Speed(step=1.0, steps=3)
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_two_processes_use_the_first_one_s_time(pictures: Path, tmp_path: Path) -> None:
    gone = {key.replace(".", "__"): "auto" for key in CHOSEN[:-1]}
    line = command(pictures / "train", tmp_path / "run", "--time", "60s", "--devices", "2", data__workers=0, **gone)
    said = tmp_path / "said"
    two = [program(MEASURED, line, said, **environment) for environment in two_ranks()]
    try:
        assert [ended(process) for process in two] == [0, 0], said.read_text()
    finally:
        for process in two:
            process.kill()
    kept = load_config([tmp_path / "run" / "config.yaml"]).train
    steps = json.loads((tmp_path / "run" / "COMPLETE").read_text())["steps"]
    assert 24 <= steps <= 60
    assert steps == kept.length(6) == len(losses(tmp_path / "run"))


def test_a_few_images_are_scored_however_many_folders_there_are(pictures: Path) -> None:
    one, two = open_source(pictures / "train"), open_source(pictures / "val")
    for source in (one, join([one, two])):
        some = speed._first(source, 5)
        assert [some.name(index) for index in range(len(some))] == [one.name(index) for index in range(5)]
        assert some.pixels == source.pixels
    assert len(speed._first(join([one, two]), 1000)) == len(one)


def test_the_command_takes_a_time(pictures: Path, tmp_path: Path) -> None:
    line = command(pictures / "train", tmp_path / "run", "--time", "30m", "--epochs", "3")
    assert finish(line, tmp_path / "said") == 2
    assert "both say how long the run is" in (tmp_path / "said").read_text()
