"""Weights, teacher and optimiser spread over two processes: the numbers of one, and checkpoints in parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ssl_vit.checkpoints.load import backbone_of_file
from ssl_vit.config import load_config
from ssl_vit.errors import UserError
from ssl_vit.run.pretrain import pretrain
from tests.runs import command, finish, finish_two, losses
from tests.training.test_ddp import WITHOUT_BATCH_NORM

SHARDED = {"train__strategy": "fsdp", "train__checkpoint_every": 4}


@pytest.mark.dist
def test_sharded_processes_learn_what_one_does(pictures: Path, tmp_path: Path) -> None:
    """Every loss and k-NN score to rounding; stopped and resumed from its parts, the same; exported whole."""
    val = ("--val", str(pictures / "val"))
    one = command(pictures / "train", tmp_path / "one", *val, **WITHOUT_BATCH_NORM)
    two = command(pictures / "train", tmp_path / "two", *val, **WITHOUT_BATCH_NORM | SHARDED)
    assert finish_two([*two, "--devices", "2"], tmp_path / "said2") == [0, 0], (tmp_path / "said2").read_text()
    assert finish(one, tmp_path / "said1") == 0, (tmp_path / "said1").read_text()
    expected = losses(tmp_path / "one")
    assert max(expected) - min(expected) > 0.01, "nothing is compared where nothing changes"
    assert losses(tmp_path / "two") == pytest.approx(expected, rel=0, abs=1e-5)

    kept = sorted(path.name for path in (tmp_path / "two" / "checkpoints").iterdir())
    assert kept == [f"step-{step:09d}.ckpt{end}" for step in (8, 12) for end in ("", ".sha256")]
    parts = {path.name for path in (tmp_path / "two" / "checkpoints" / "step-000000012.ckpt").iterdir()}
    assert {"__0_0.distcp", "__1_0.distcp", "rest.pt"} <= parts
    whole, ours = (backbone_of_file(tmp_path / name).state_dict() for name in ("one", "two"))
    for name, weight in whole.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-4, msg=name)

    again(tmp_path / "two")
    assert losses(tmp_path / "two") == pytest.approx(expected, rel=0, abs=1e-5)


def again(out: Path) -> None:
    """As if the run had been killed after its eighth step."""
    before = losses(out)
    (out / "COMPLETE").unlink()
    for path in (out / "checkpoints").glob("step-000000012*"):
        path.rename(out / path.name)  # out of the way
    data = load_config([out / "config.yaml"]).data.path
    assert finish_two(["pretrain", data, "--out", str(out), "--resume", "--devices", "2"], out / "said") == [0, 0]
    assert losses(out)[:8] == before[:8]
    assert (out / "COMPLETE").exists()


def test_a_strategy_has_a_name(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.strategy: expected ddp or fsdp, got 'deepspeed'"):
        pretrain(str(pictures / "train"), tmp_path / "run", {"train.strategy": "deepspeed"})
