"""Crops that grow while a run goes on: of any method, resumed exactly, and refused in a line where they cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_vit.cli import main
from ssl_vit.config import load_config
from ssl_vit.errors import UserError
from ssl_vit.methods.mae import MAE
from ssl_vit.run import plan
from ssl_vit.run.prepare import build_method
from ssl_vit.run.pretrain import pretrain as start_run
from ssl_vit.schedules import phases
from ssl_vit.training import loop
from ssl_vit.training.fabric import new_fabric
from ssl_vit.training.looks.metrics import Metrics
from ssl_vit.training.step import Learner, ReadyViews, take_step
from tests.methods.settings import COMMON, SMALL
from tests.runs import rows, weights

GROWING = {"train.sizes": "16:0.5,32:0.5"}


def flags_of(method: str, pictures: Path, **more: object) -> dict[str, Any]:
    found = COMMON | GROWING | {"data.path": str(pictures / "train"), "method.name": method}
    found |= {f"method.{key}": value for key, value in SMALL[method].items()}
    return found | {key.replace("__", "."): value for key, value in more.items()}


class Killed(BaseException):
    """No handler expects it, as none sees a kill."""


@pytest.mark.parametrize("dies", [5, 9], ids=["small", "large"])
def test_crops_grow_and_a_killed_run_goes_on_exactly(
    dies: int, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 steps, checkpoints at 4, 8 and 12; local crops of 16 pixels become 8."""
    seen, original = list[tuple[int, ...]](), take_step

    def step(learner: Learner, batch: Any, number: int) -> Any:
        seen.append((number, *(view.shape[-1] for view in batch.views)))
        return original(learner, batch, number)

    monkeypatch.setattr(loop, "take_step", step)
    flags = flags_of("dino", pictures)
    start_run(load_config(flags=flags), tmp_path / "whole")
    assert seen == [(number, 16, 16, 8) if number < 6 else (number, 32, 32, 16) for number in range(12)]
    write = Metrics.write

    def dying(metrics: Metrics, at: int, row: dict[str, Any]) -> None:
        if at == dies and "grad_norm" in row:
            raise Killed
        write(metrics, at, row)

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "write", dying)
        with pytest.raises(Killed):
            start_run(load_config(flags=flags), tmp_path / "run")
    start_run(load_config([tmp_path / "run" / "config.yaml"]), tmp_path / "run", resume=True)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert "32 pixels" not in (tmp_path / "run" / "train.log").read_text().partition("recipe")[2].splitlines()[0]


@pytest.mark.parametrize("method", ["beit", "ibot", "mae", "simmim"])
def test_what_is_hidden_follows_the_size(method: str, pictures: Path) -> None:
    config, _ = plan.resolve(load_config(flags=flags_of(method, pictures)))
    torch.manual_seed(0)
    built = build_method(config)
    learner = Learner(new_fabric(config.train), built, config, per_epoch=2, total=4)
    info = built.exported().info
    for step, size in enumerate((16, 32)):
        views = built.views().scaled(size, 32, info.multiple, info.smallest).views
        batch = ReadyViews([torch.randn(view.count * 8, 3, view.size, view.size) for view in views])
        outcome = take_step(learner, batch, step)
        assert outcome.taken
        if (hidden := outcome.given.parts.get("hidden")) is not None:
            assert 0 < float(hidden) < 1


def test_a_smaller_grids_positions_are_those_of_the_larger_one_in_between(pictures: Path) -> None:
    """Linear ones stay linear: a cell of half the grid lies between two of the whole."""
    config, _ = plan.resolve(load_config(flags=flags_of("mae", pictures)))
    method = build_method(config)
    assert isinstance(method, MAE)
    assert method._positions(4, 4) is method.positions
    rows_of = torch.arange(4.0)[:, None].expand(4, 4).reshape(16, 1)
    method.positions = rows_of.expand(16, method.positions.shape[1]).clone()
    small = method._positions(2, 2).view(2, 2, -1)
    torch.testing.assert_close(small[0, 0], small[0, 1])
    torch.testing.assert_close(small[0] + small[1], torch.full_like(small[0], 3.0))
    assert float(small[0, 0, 0]) == pytest.approx(0.5, abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(SMALL))
def test_every_method_takes_growing_crops(method: str, pictures: Path, tmp_path: Path) -> None:
    more = {"method__crop_size": 16} if method == "detreg" else {}
    done = start_run(load_config(flags=flags_of(method, pictures, **more)), tmp_path / "run")
    assert done.steps == 12


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("112", "'112' is none"),
        ("big:0.5,224:0.5", "'big:0.5' is none"),
        ("224:0.5,112:0.5", "sizes that rise"),
        ("112:0.5,224:0.4", "these make 0.9"),
        ("112:0,224:1", "shares above 0"),
        ("-16:0.5,32:0.5", "sizes that rise"),
        ("", "is none"),
    ],
)
def test_a_schedule_that_is_none_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.sizes") as refused:
        load_config(flags={"data.path": "x", "train.sizes": text})
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"train__sizes": "12:0.5,32:0.5"}, "12 pixels, and vit_tiny_patch16_224 takes multiples of 8"),
        ({"backbone__image_size": 48}, "ends with 32 pixels, and backbone.image_size is 48"),
        ({"backbone__name": "efficientformer_l1", "backbone__args": {}, "train__sizes": "32:0.5,224:0.5"},
         "32 pixels, and efficientformer_l1 takes 224 pixels only"),
        ({"method__name": "mae", "train__sizes": "8:0.5,32:0.5"}, "single patch"),
    ],
)  # fmt: skip
def test_sizes_that_a_run_cant_have_are_refused_before_an_image_is_read(
    more: dict[str, object], said: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssl_vit.data.source.decode", lambda *_, **__: pytest.fail("an image was read"))
    flags = {key: value for key, value in flags_of("simclr", pictures, **more).items() if "method." not in key}
    flags["method.name"] = more.get("method__name", "simclr")
    if "efficientformer" in str(more):
        del flags["backbone.image_size"]
    with pytest.raises(UserError) as refused:
        start_run(load_config(flags=flags), tmp_path / "run")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_the_last_size_is_the_runs(pictures: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["pretrain", str(pictures / "train"), "--set", "train.sizes=24:0.9,48:0.1", "--print-config"]
    assert main(argv) == 0
    said = capfd.readouterr()
    assert "image_size: 48" in said.out
    assert "the last of train.sizes" in said.err


def test_phases_are_whole_steps() -> None:
    assert [tuple(phase) for phase in phases("16:0.5,32:0.5", 7)] == [(16, 0, 4), (32, 4, 7)]
    assert [tuple(phase) for phase in phases("16:0.01,32:0.99", 10)] == [(32, 0, 10)], "none without a step"
    assert phases("8:0.1,16:0.2,32:0.7", 10**6)[-1].stop == 10**6
