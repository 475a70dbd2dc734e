"""Every method: a run that dies and is resumed ends with the same numbers and the same state, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_vit.config import load_config
from ssl_vit.methods import list_methods
from ssl_vit.run.pretrain import pretrain as start_run
from ssl_vit.tokenizers import fitting
from ssl_vit.training.checkpoint import newest_checkpoint
from ssl_vit.training.looks.metrics import Metrics
from tests.methods.settings import COMMON, SMALL
from tests.runs import rows, weights

STEPS, DIES = 12, 6


class Killed(BaseException):
    """No handler expects it, as none sees a kill."""


def pretrain(pictures: Path, out: Path, method: str, *, resume: bool = False, **more: object) -> None:
    if resume:
        start_run(load_config([out / "config.yaml"]), out, resume=True)
        return
    flags = COMMON | {"data.path": str(pictures / "train"), "method.name": method}
    flags |= {f"method.{key}": value for key, value in SMALL[method].items()}
    start_run(load_config(flags=flags | more), out)


def state(out: Path) -> dict[str, torch.Tensor]:
    """Weights, centres, queues, tokenizer: all that the last checkpoint holds of the method."""
    newest = newest_checkpoint(out / "checkpoints")
    assert newest is not None
    found: dict[str, torch.Tensor] = torch.load(newest, weights_only=True)["state_dict"]
    return found


def same(whole: Path, out: Path) -> None:
    assert rows(out) == rows(whole)
    summary = json.loads((out / "summary.json").read_text())
    assert summary == json.loads((whole / "summary.json").read_text())
    assert "k-NN" in summary["did_it_help"]["sentence"]
    assert len(summary["did_it_help"]["rows"]) == 3, "start, end, raw pixels"
    assert weights(out) == weights(whole)
    before, after = state(whole), state(out)
    assert not [name for name in before if "_orig_mod" in name], "names of weights are the model's own"
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


LITTLE_MEMORY = {"train.accumulate": 2, "train.checkpoint_activations": True}


@pytest.mark.parametrize(
    ("method", "more"),
    [
        *(pytest.param(name, {}, id=name) for name in list_methods()),
        pytest.param("moby", LITTLE_MEMORY, id="moby-in-parts", marks=pytest.mark.slow),
        pytest.param("ibot", LITTLE_MEMORY, id="ibot-in-parts"),
        pytest.param("dino", {"train.compile": True}, id="dino-compiled", marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_equals_never_killed(
    method: str, more: dict[str, object], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    pretrain(pictures, whole, method, **more)
    assert sum("grad_norm" in row for row in rows(whole)) == STEPS
    write = Metrics.write

    def dying(metrics: Metrics, step: int, row: dict[str, Any]) -> None:
        if step == DIES:
            raise Killed
        write(metrics, step, row)

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "write", dying)
        with pytest.raises(Killed):
            pretrain(pictures, out, method, **more)
    assert newest_checkpoint(out / "checkpoints").name == "step-000000004.ckpt"  # type: ignore[union-attr]  # it is there
    pretrain(pictures, out, method, resume=True)
    same(whole, out)


def test_killed_while_the_tokenizer_is_fitted_begins_again(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    pretrain(pictures, whole, "beit")
    for name in ("tokenizer.safetensors", "tokenizer.png"):
        assert (whole / name).exists()

    def dying(*_: object) -> float:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "fit", dying)
        with pytest.raises(Killed):
            pretrain(pictures, out, "beit")
    assert not (out / "tokenizer.safetensors").exists()
    pretrain(pictures, out, "beit", resume=True)
    same(whole, out)
    assert (out / "tokenizer.safetensors").read_bytes() == (whole / "tokenizer.safetensors").read_bytes()
    assert (out / "tokenizer.png").read_bytes() == (whole / "tokenizer.png").read_bytes()


def test_a_fitted_tokenizer_is_not_fitted_again(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a run died before its first checkpoint, the file in its folder is used."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    pretrain(pictures, whole, "beit")

    def dying(metrics: Metrics, step: int, row: dict[str, Any]) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "write", dying)
        with pytest.raises(Killed):
            pretrain(pictures, out, "beit")
    assert newest_checkpoint(out / "checkpoints") is None
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "fit", dying)
        pretrain(pictures, out, "beit", resume=True)
    same(whole, out)
