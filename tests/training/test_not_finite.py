"""A step whose loss or gradient is not finite leaves nothing behind but the images that it read."""

from __future__ import annotations

import json
import math
import os
import re
import socket
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ssl_vit
from ssl_vit.config import load_config
from ssl_vit.data.batch import Batch
from ssl_vit.errors import RunFailed, UserError
from ssl_vit.methods.dino import DINO
from ssl_vit.methods.method import Method, Progress, Step
from ssl_vit.run.prepare import build_method
from ssl_vit.run.pretrain import pretrain as whole_run_of
from ssl_vit.training.buffers import Buffers
from ssl_vit.training.fabric import new_fabric
from ssl_vit.training.finite import all_finite, not_finite
from ssl_vit.training.looks.lost import MOST
from ssl_vit.training.step import Learner, ReadyViews, take_step
from tests.runs import SETTINGS, process_of
from tests.test_families_train import resolved
from tests.training.test_accumulate import RECIPE

NAN = float("nan")


class Moving(nn.Module):
    """What a forward pass moves: statistics, a counter in place, and a tensor that takes another's place."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("last", torch.zeros(1))
        self.register_buffer("none", None)

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        self.last = images.mean((1, 2, 3))
        return self.norm(images)


class Judged(Method):
    """Finite or not, as ``losses`` says of each step; the loss may be poor while its gradient is sound."""

    def __init__(self, backbone: Any, losses: list[float], sound_gradient: bool = False) -> None:
        super().__init__()
        self.moving, self.weight = Moving(), nn.Parameter(torch.ones(3, 1, 1))
        self.losses, self.sound, self.held, self.after = losses, sound_gradient, [backbone], 0

    def forward(self, batch: list[Tensor], progress: Progress) -> Step:
        value = self.losses[progress.step]
        images = torch.full((2, 3, 4, 4), value) * torch.arange(2.0)[:, None, None, None] + 1
        out = self.moving(images)
        loss = (out * self.weight).mean()
        used = sum(0 * each.sum() for each in self.parameters())  # as two processes ask
        return Step(self.weight.mean() + torch.tensor(value) + used if self.sound else loss)

    def after_step(self, progress: Progress) -> None:
        self.after += 1

    def exported(self) -> Any:
        return self.held[0]


def judged(losses: list[float], precision: str = "32-true", devices: int = 1, **more: Any) -> Learner:
    config = resolved("dino", "vision_transformer", **RECIPE | {"train.precision": precision, "train.devices": devices})
    method, fabric = Judged(build_method(config).exported(), losses, **more), new_fabric(config.train)
    fabric.launch()
    return Learner(fabric, method, config, per_epoch=5, total=len(losses))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_lost_step_leaves_every_buffer_as_it_was(precision: str, parts: int) -> None:
    learner = judged([1.0, NAN, math.inf, 1.0], precision)
    train = learner.config.train.model_copy(update={"accumulate": parts})
    learner.config = learner.config.model_copy(update={"train": train})
    take_step(learner, ReadyViews([]), 0)
    before = {name: value.clone() for name, value in learner.method.state_dict().items()}
    for step in (1, 2):
        outcome = take_step(learner, ReadyViews([]), step)
        assert not outcome.taken
        assert outcome.lost is not None
        now = learner.method.state_dict()
        assert now.keys() == before.keys()
        assert all(torch.equal(value, before[name]) for name, value in now.items())
    outcome = take_step(learner, ReadyViews([]), 3)
    assert (outcome.taken, outcome.lost) == (True, None)
    assert int(learner.method.moving.seen) == 4 * parts  # type: ignore[operator]
    assert learner.method.after == 2


def test_a_loss_that_is_not_finite_is_no_step_even_with_a_sound_gradient() -> None:
    learner = judged([NAN, 1.0], sound_gradient=True)
    assert not take_step(learner, ReadyViews([]), 0).taken
    assert torch.equal(learner.method.weight, torch.ones(3, 1, 1))
    assert take_step(learner, ReadyViews([]), 1).taken


def test_buffers_that_are_shared_late_or_absent_are_put_back() -> None:
    moving = Moving()
    moving.twin = moving.norm
    buffers = Buffers(moving)
    for value in (1.0, 2.0):
        buffers.keep()
        before = {name: each.clone() for name, each in moving.state_dict().items()}
        moving(torch.full((2, 3, 4, 4), value))
        assert any(not torch.equal(each, before[name]) for name, each in moving.state_dict().items())
        buffers.put_back()
        assert all(torch.equal(each, before[name]) for name, each in moving.state_dict().items())
        moving(torch.full((2, 3, 4, 4), value))


def test_what_is_not_finite_is_found_in_any_type_and_size() -> None:
    sound = [torch.ones(3), torch.ones(2, dtype=torch.bfloat16), torch.empty(0), torch.ones(1, dtype=torch.long)]
    assert all_finite(sound)
    assert all_finite([])
    for wrong in (torch.tensor([1.0, NAN]), torch.tensor([-math.inf], dtype=torch.bfloat16)):
        assert not all_finite([*sound, wrong])


def second_rank_fails(port: int, folder: str, rank: int) -> None:
    """One of two processes; the second alone has a loss that is not finite, once, with a sound gradient."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    learner = judged([1.0, NAN if rank else 1.0, 1.0], sound_gradient=True, devices=2)
    taken = [take_step(learner, ReadyViews([]), step).taken for step in range(3)]
    if rank:
        learner.method.weight.data += NAN
    found = not_finite(learner)
    Path(folder, f"{rank}.json").write_text(json.dumps([taken, int(learner.method.moving.seen), found]))  # type: ignore[operator]


@pytest.mark.dist
def test_all_ranks_lose_the_step_that_one_loses(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [process_of(second_rank_fails, port, str(tmp_path), rank) for rank in (0, 1)]
    for each in ranks:
        each.join()
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [taken for taken, *_ in found] == [[True, False, True]] * 2
    assert [seen for _, seen, _ in found] == [4, 4]
    assert [wrong for *_, wrong in found] == ["another rank's weights", "weight"]


def tiny(data: Path, out: Path, **changes: object) -> Any:
    """A run in this process, around a network with batch norms."""
    settings = SETTINGS | {
        "data.workers": 0,
        "backbone.name": "resnet10t",
        "backbone.args": {},
        "method.local_crops": 0,
    }
    settings |= {"backbone.drop_path": 0.0, "train.epochs": 2, "train.checkpoint_every": 3, "health.every": 6}
    settings |= {"optim.optimizer": "adamw", "method.centering": "mean", "method.head_norm": "none"}
    settings |= {key.replace("__", "."): value for key, value in changes.items()}
    sets = [f"{key}={value}" for key, value in settings.items()]
    return whole_run_of(load_config([], sets, {"data.path": str(data)}), out)


def poison(monkeypatch: pytest.MonkeyPatch, steps: range) -> None:
    """One pixel of the first view is not a number, in these calls for a step's views."""
    sound, calls = Learner.views, count()

    def views(learner: Learner, batch: Batch | ReadyViews) -> list[Tensor]:
        made = sound(learner, batch)
        if next(calls) in steps:
            made[0][0, 0, 0, 0] = NAN
        return made

    monkeypatch.setattr(Learner, "views", views)


def test_an_image_that_is_not_finite_is_named_kept_and_can_be_replayed(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One at step 7, and a network with running statistics: nothing of it is in the checkpoints or the export."""
    out = tmp_path / "run"
    poison(monkeypatch, range(7, 8))
    with caplog.at_level("WARNING", "ssl_vit"):
        done = tiny(pictures / "train", out)
    assert done.steps == 12
    assert len(list((out / "checkpoints").glob("*.ckpt"))) == 2
    for path in (out / "checkpoints").glob("*.ckpt"):
        assert all_finite(torch.load(path, weights_only=True)["state_dict"].values())
    (named,) = (out / "lost_steps").glob("*.json")
    names = json.loads(named.read_text())["images"]
    assert named.name == "step-000000007-rank-0.json"
    assert len(names) == 8
    assert all((pictures / "train" / name).is_file() for name in names)
    assert f"step 7 read {names[0]}" in caplog.text
    found = ssl_vit.replay_step(out, 7)  # nothing is wrong with the image itself
    assert (found.taken, found.first) == (True, "")
    monkeypatch.undo()
    poison(monkeypatch, range(1))
    found = ssl_vit.replay_step(out, 7)
    assert (found.taken, found.first) == (False, "the views")
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"step-000000003-rank-0.pt: not there; .*step-000000007-rank-0"):
        ssl_vit.replay_step(out, 3)


def test_a_replay_names_the_module_that_made_the_first_number_that_is_not_finite(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, range(2, 3))
    tiny(pictures / "train", tmp_path / "run", train__epochs=1)
    monkeypatch.undo()
    sound = nn.MaxPool2d.forward
    monkeypatch.setattr(nn.MaxPool2d, "forward", lambda pool, images: sound(pool, images) / 0)
    assert ssl_vit.replay_step(tmp_path / "run", 2).first == "teacher.backbone.model.maxpool"


def test_a_checkpoint_that_is_not_finite_is_not_kept(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that break while the loss is finite: the run ends at the next save, and the one before is as it was."""
    out, sound = tmp_path / "run", DINO.after_step

    def after_step(method: DINO, progress: Progress) -> None:
        sound(method, progress)
        if progress.step == 4:
            method.exported().model.bn1.running_var[0] = NAN

    monkeypatch.setattr(DINO, "after_step", after_step)
    with pytest.raises(
        RunFailed, match=r"step 6: teacher\S*running_var is not finite, and nothing is saved; .*step-000000003"
    ):
        tiny(pictures / "train", out)
    assert [path.name for path in sorted((out / "checkpoints").glob("*.ckpt"))] == ["step-000000003.ckpt"]


def test_a_run_that_is_never_finite_ends_without_a_checkpoint(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks come while nothing was learnt, and find nothing to look at."""
    poison(monkeypatch, range(10**6))
    with pytest.raises(RunFailed, match=r"diverged.*step 9; start a new run, another --out, with --set optim\.lr="):
        tiny(pictures / "train", tmp_path / "run", health__every=2, train__checkpoint_every=50)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert "diverged. The loss is nan" in (tmp_path / "run" / "train.log").read_text()


def test_the_advice_after_divergence_can_be_followed(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its flags, as they stand there, begin a run that comes to its end."""
    poison(monkeypatch, range(4, 10**6))
    with pytest.raises(RunFailed) as failed:
        tiny(pictures / "train", tmp_path / "run", train__epochs=3, optim__min_lr=1e-3)
    monkeypatch.undo()
    assert len(list((tmp_path / "run" / "lost_steps").glob("*.json"))) == MOST
    said = str(failed.value)
    assert "32-true" not in said, "it is that already"
    flags = re.sub(r"\(was [^)]*\)", "", said[said.index("--weights") :]).split()
    assert flags[::2] == ["--weights", "--set", "--set"]
    changes = dict(flag.split("=") for flag in flags[3::2])
    assert changes == {"optim.lr": "0.0005", "optim.min_lr": "0.0005"}
    more = {key.replace(".", "__"): value for key, value in changes.items()}
    assert tiny(pictures / "train", tmp_path / "again", train__epochs=1, backbone__weights=flags[1], **more).steps == 6
