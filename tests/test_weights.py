"""Runs that start from the weights of a file: loaded, resized, said, and refused before a picture is decoded."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file

from ssl_vit.cli import main
from ssl_vit.config import load_config
from ssl_vit.data import source as reading
from ssl_vit.eval.weights import load_backbone
from ssl_vit.run import plan, prepare
from ssl_vit.training.checkpoint import newest_checkpoint
from tests.checkpoints.files import filled, official, save
from tests.checkpoints.test_refusals import Malicious
from tests.runs import command, finish

STILL = {"optim__lr": 1e-30, "optim__min_lr": 0.0, "optim__weight_decay": 0.0, "optim__weight_decay_end": 0.0}
STILL |= {"train__epochs": 1, "optim__warmup_epochs": 0.0, "data__workers": 0}


def exported(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "model.safetensors")


def test_a_run_starts_from_the_weights_and_a_resumed_one_from_its_checkpoint(
    pictures: Path, whole_run: Path, tmp_path: Path
) -> None:
    """Where nothing is learnt, what comes out is what went in; the file may be gone when the run goes on."""
    start, out, said = tmp_path / "start.safetensors", tmp_path / "run", tmp_path / "said"
    save_file(exported(whole_run), start)
    argv = command(pictures / "train", out, "--weights", str(start), **STILL)
    assert finish(argv, said) == 0, said.read_text()
    for key, value in exported(whole_run).items():
        torch.testing.assert_close(exported(out)[key], value, rtol=1e-5, atol=1e-6, msg=key)
    log = (out / "train.log").read_text()
    assert f"backbone.weights = {start}" in log
    assert "timm, names of timm: 30 tensors" in log
    (out / "COMPLETE").unlink()
    start.unlink()
    assert finish(["pretrain", str(pictures / "train"), "--out", str(out), "--resume"], said) == 0, said.read_text()
    assert main([*argv[:2], "--out", str(tmp_path / "other"), *argv[4:]]) == 2, "a new run needs the file"


def test_positions_are_resized_to_the_runs_size(pictures: Path, whole_run: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "run", tmp_path / "said"
    argv = command(pictures / "train", out, "--weights", str(whole_run), **STILL, backbone__image_size=48)
    assert finish(argv, said) == 0, said.read_text()
    assert "pos_embed resized from (1, 17, 32) to (1, 37, 32)" in (out / "train.log").read_text()
    before, after = exported(whole_run), exported(out)
    torch.testing.assert_close(after["pos_embed"][:, 0], before["pos_embed"][:, 0], rtol=1e-5, atol=1e-6)
    assert after["pos_embed"].shape == (1, 37, 32)


@pytest.mark.parametrize("place", ["", "export", "checkpoint"])
def test_the_file_says_the_network_and_its_size(place: str, pictures: Path, whole_run: Path) -> None:
    weights = newest_checkpoint(whole_run / "checkpoints") if place == "checkpoint" else whole_run / place
    flags = {"data.path": str(pictures / "train"), "backbone.weights": str(weights)}
    resolved, decisions = plan.resolve(load_config(flags=flags))
    assert (resolved.backbone.name, resolved.backbone.image_size) == ("vit_tiny_patch16_224", 32)
    assert resolved.backbone.args == {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    assert [d.key for d in decisions if str(weights) in str(d.value) or str(whole_run) in d.why] == [
        *("backbone.name", "backbone.args", "backbone.image_size", "backbone.weights")
    ]
    with torch.inference_mode():
        images = torch.randn(2, 3, 32, 32)
        found, expected = load_backbone(weights).eval()(images), load_backbone(whole_run).eval()(images)
    assert torch.equal(found.pooled, expected.pooled)


def test_lists_reach_the_network(pictures: Path) -> None:
    flags = {"data.path": str(pictures / "train"), "backbone.name": "swin_tiny_patch4_window7_224"}
    sets = ["backbone.args={depths: [1, 1, 1, 1], embed_dim: 12, window_size: 4}", "backbone.image_size=64"]
    resolved, _ = plan.resolve(load_config(sets=[*sets, "method.local_size=32"], flags=flags))
    assert resolved.backbone.args["depths"] == (1, 1, 1, 1)
    exported_model = prepare.build_method(resolved).exported()
    assert [len(layer.blocks) for layer in exported_model.model.layers] == [1, 1, 1, 1]


def never(*_: object, **__: object) -> NoReturn:
    raise AssertionError("a picture was decoded")


def harmed(how: str, folder: Path, whole_run: Path) -> Path:
    state = exported(whole_run)
    if how == "malicious":
        return save(folder, {"model": state, "extra": Malicious(folder / "run-by-it")})
    if how == "another model's":
        return save(folder, {"model": filled(official("moby"))})
    if how == "other widths":
        state["blocks.1.mlp.fc1.weight"] = torch.zeros(64, 32)
    file = folder / "weights.safetensors"
    save_file(state, file)
    data = file.read_bytes()
    file.write_bytes({"truncated": data[: len(data) // 2], "zeros": bytes(len(data))}.get(how, data))
    return file


SAYS = {
    "malicious": "refused, nothing was run: the pickle asks for posix.mkdir",
    "truncated": "weights.safetensors: not readable as weights",
    "zeros": "weights.safetensors: not readable as weights",
    "another model's": "cls_token (1, 1, 32) of vit_tiny_patch16_224 is missing",
    "other widths": "blocks.1.mlp.fc1.weight is (64, 32), vit_tiny_patch16_224 expects (128, 32)",
}


@pytest.mark.fault
@pytest.mark.parametrize("how", SAYS)
def test_what_cannot_be_loaded_is_refused_before_a_picture_is_decoded(
    how: str,
    pictures: Path,
    whole_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(reading, "decode", never)
    weights, out = harmed(how, tmp_path, whole_run), tmp_path / "run"
    assert main(command(pictures / "train", out, "--weights", str(weights))) == 2
    assert main(["eval", "knn", str(weights), *("--backbone", "vit_tiny_patch16_224"), *labelled(pictures)]) == 2
    first, second = capfd.readouterr().err.splitlines()
    assert SAYS[how] in first
    if "widths" not in how and "another" not in how:  # the run's network is smaller than the published one
        assert SAYS[how] in second
    assert str(weights) in second
    assert not out.exists()
    assert not (tmp_path / "run-by-it").exists()


@pytest.mark.fault
@pytest.mark.parametrize("how", SAYS)
def test_no_other_way_in_takes_it(
    how: str, pictures: Path, whole_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Looking into the file, embedding with it, and exporting a run whose weights were exchanged for it."""
    weights, run = harmed(how, tmp_path, whole_run), tmp_path / "other-run"
    unreadable = how in ("malicious", "truncated", "zeros")
    assert main(["inspect", str(weights)]) == (2 if unreadable else 0)
    embed = ["embed", str(weights), str(pictures / "val"), "--out", str(tmp_path / "features.npz")]
    assert main([*embed, "--backbone", "vit_tiny_patch16_224"]) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 + unreadable
    assert all(str(weights) in line for line in said)
    shutil.copytree(whole_run / "export", run / "export")
    shutil.copyfile(weights, run / "export" / "model.safetensors")
    for sums in ("there", "gone"):
        assert main(["export", str(run), "--to", "torchvision"]) == 2
        [line] = capfd.readouterr().err.splitlines()
        assert str(run / "export" / "model.safetensors") in line
        assert ("damaged or changed" in line) == (sums == "there")
        (run / "export" / "SHA256SUMS").unlink(missing_ok=True)
    assert [entry.name for entry in run.iterdir()] == ["export"]
    assert not (tmp_path / "features.npz").exists()
    assert not (tmp_path / "run-by-it").exists()


def labelled(pictures: Path) -> list[str]:
    return ["--train", str(pictures / "train"), "--val", str(pictures / "val")]


@pytest.mark.fault
def test_weights_that_are_not_there_or_nobody_knows(
    pictures: Path, whole_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", str(pictures / "train"), "--out", str(tmp_path / "a"), "--weights", "nowhere.pth"]) == 2
    assert "nowhere.pth: no such file or folder; expected weights to start from" in capfd.readouterr().err
    save_file(exported(whole_run), tmp_path / "bare.safetensors")
    bare = ["--weights", str(tmp_path / "bare.safetensors")]
    assert main(["pretrain", str(pictures / "train"), "--out", str(tmp_path / "a"), *bare]) == 2
    assert "bare.safetensors: does not say its architecture; add --backbone NAME" in capfd.readouterr().err


def test_scores_need_no_name_where_the_file_says_it(
    pictures: Path, whole_run: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint of a run scores as its export does."""
    caplog.set_level(logging.WARNING)
    scores = []
    for weights in (newest_checkpoint(whole_run / "checkpoints"), whole_run):
        assert main(["eval", "knn", str(weights), *labelled(pictures)]) == 0
        scores.append(json.loads(capfd.readouterr().out))
    assert scores[0]["knn"] == scores[1]["knn"]
    assert scores[0]["protocol"]["mean"] == scores[1]["protocol"]["mean"]
