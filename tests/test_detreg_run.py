"""A run of DETReg: regions before the first step, a detector beside the backbone, and a picture of both."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from ssl_vit.checkpoints.load import backbone_of_file
from ssl_vit.cli import main
from ssl_vit.config import load_config
from ssl_vit.detectors.files import FILE, load_detector
from ssl_vit.eval import detection
from ssl_vit.eval.job import Job
from ssl_vit.eval.kinds.detection import Detection
from ssl_vit.files import sha256
from ssl_vit.methods import detreg
from ssl_vit.proposals.store import Proposals
from ssl_vit.run.finish import RunResult
from ssl_vit.run.pretrain import pretrain
from ssl_vit.training.checkpoint import newest_checkpoint
from tests.eval.test_detection import painted
from tests.methods.settings import COMMON, SMALL
from tests.runs import Trap, finish, rows, start, steps_done, wait_for


class Killed(BaseException):
    """No handler expects it, as none sees a kill."""


def settings(pictures: Path, **changes: object) -> dict[str, object]:
    flags = COMMON | {"data.path": str(pictures / "train"), "method.name": "detreg", "train.epochs": 1}
    return flags | {f"method.{key}": value for key, value in SMALL["detreg"].items()} | changes


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """On the export of another run, as a user would do it."""
    folder = tmp_path_factory.mktemp("detreg")
    dino = settings(pictures) | {"method.name": "dino"} | {f"method.{k}": v for k, v in SMALL["dino"].items()}
    dino = {key: value for key, value in dino.items() if key not in {f"method.{k}" for k in SMALL["detreg"]}}
    pretrain(load_config(flags=dino), folder / "dino")
    flags = settings(pictures, **{"backbone.weights": str(folder / "dino"), "backbone.drop_path": 0.0})
    flags |= {"method.proposals": "patches", "method.proposals_weights": str(folder / "dino")}
    for key in ("backbone.name", "backbone.args", "backbone.image_size"):
        del flags[key]
    return pretrain(load_config(flags=flags), folder / "run")


def test_the_backbone_is_exported_as_it_came(run: RunResult) -> None:
    before = backbone_of_file(run.folder.parent / "dino").model.state_dict()
    after = backbone_of_file(run.folder).model.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_the_detector_is_exported_whole(run: RunResult) -> None:
    assert run.detector == run.folder / "export" / "detector.safetensors"
    assert f"Detector: {run.detector}" in str(run)
    checkpoint = newest_checkpoint(run.folder / "checkpoints")
    assert checkpoint is not None
    trained = torch.load(checkpoint, weights_only=True)["state_dict"]
    found = load_detector(run.detector)
    for name, value in found.state_dict().items():
        assert torch.equal(value, trained[f"method.network.{name}"]), name
    assert found.settings["queries"] == 6
    assert found.backbone.info.mean == backbone_of_file(run.folder).info.mean


def test_its_regions_are_kept_and_drawn(run: RunResult) -> None:
    """Those of the network that the settings name; the export says which, without a path of this machine."""
    (kept,) = (path for path in (run.folder / "proposals").iterdir() if path.is_dir())
    assert kept.name.startswith("patches-")
    assert len(Proposals(kept)) == 48
    described = json.loads((run.folder / "export" / "config.json").read_text())["ssl_vit"]
    assert described["settings"]["method"]["proposals_weights"] == "dino"
    for name in ("regions.png", "queries.png"):
        with Image.open(run.folder / name) as picture:
            assert len(set(picture.convert("RGB").getdata())) > 100


def test_it_is_fine_tuned_against_its_backbone_alone_and_nothing(
    run: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command; and every arm begins with what it says, in a detector of the same sizes."""
    sides = {side: painted(tmp_path / side, count) for side, count in (("train", 6), ("val", 4))}
    argv = ["eval", "detection", str(run.folder), "--detector", "deformable_detr", "--size", "32", "--steps", "2"]
    argv += ["--train", str(sides["train"]), "--val", str(sides["val"]), "--batch", "2", "--seeds", "0,1"]
    assert main([*argv, "--json", str(tmp_path / "score.json")]) == 0
    result = json.loads((tmp_path / "score.json").read_text())
    found = result["detection"]["100%"]
    assert {key for key in found if "verdict" not in key} == {
        "scratch",
        "backbone",
        "weights",
        "difference",
        "difference_from_backbone",
    }
    assert "against the backbone's weights alone" in found["verdict"]
    assert result["protocol"]["pretrained_detector"] == sha256(run.folder / "export" / FILE)

    job = Job(run.folder, sides)
    asked = Detection(detector="deformable_detr", size=32, batch=2)
    trial = detection.plan(job, asked)
    kept = load_detector(run.folder / "export" / FILE).state_dict()
    for arm in trial.arms:
        state = trial.begin(arm, seed=1).state_dict()
        assert state["detector.class_embed.weight"].shape[0] == 2
        same = {
            name for name, value in kept.items() if torch.equal(state.get(f"detector.{name}", torch.empty(0)), value)
        }
        learnt = {"transformer.level_embed", "query_embed.weight", "input_proj.0.0.weight"}
        assert (learnt <= same) == (arm == "weights"), arm
        assert ("backbone.model.patch_embed.proj.weight" in same) == (arm != "scratch"), arm
    capsys.readouterr()
    assert detection.plan(job, asked.model_copy(update={"detector": "detr"})).arms == ["scratch", "weights"]


def test_a_random_backbone_is_said_loudly(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a run that dies while regions are proposed goes on with those that are there."""
    config = load_config(flags=settings(pictures))

    def dying(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(detreg, "propose", dying)
        with pytest.raises(Killed):
            pretrain(config, tmp_path / "run")
    assert "this one is RANDOM" in (tmp_path / "run" / "train.log").read_text()
    result = pretrain(load_config([tmp_path / "run" / "config.yaml"]), tmp_path / "run", resume=True)
    assert result.detector is not None
    assert result.detector.is_file()


@pytest.mark.fault
def test_killed_while_it_proposes_and_while_it_learns_it_ends_with_the_same_detector(
    pictures: Path, tmp_path: Path
) -> None:
    """By SIGKILL, in processes of their own, with the default regions; to the bit."""
    flags = settings(pictures) | {"method.proposals": "selective_search"}
    del flags["data.path"]
    sets = [word for key, value in flags.items() for word in ("--set", f"{key}={value}")]
    said, whole, out = tmp_path / "said", tmp_path / "whole", tmp_path / "run"
    assert finish(["pretrain", str(pictures / "train"), "--out", str(whole), *sets], said) == 0, said.read_text()
    run = start(["pretrain", str(pictures / "train"), "--out", str(out), *sets], said)
    wait_for(lambda: (out / "proposals").is_dir())
    run.kill()
    run.join()
    assert not steps_done(out)
    resume = ["pretrain", str(pictures / "train"), "--out", str(out), "--resume"]
    assert finish(resume, said, Trap(signal.SIGKILL, step=5)) == -signal.SIGKILL, said.read_text()
    assert finish(resume, said) == 0, said.read_text()
    assert rows(out) == rows(whole)
    assert (out / "export" / FILE).read_bytes() == (whole / "export" / FILE).read_bytes()
