"""Whether a run helps is said by every run; one from trained weights that hurts is stopped, and its start exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ssl_vit.cli import main
from ssl_vit.config import load_config
from ssl_vit.methods.method import Progress
from ssl_vit.methods.simclr import SimCLR
from ssl_vit.run.finish import RunResult
from ssl_vit.run.pretrain import pretrain as start_run
from ssl_vit.training.looks.metrics import Metrics
from tests.methods.settings import COMMON, SMALL
from tests.runs import rows, start, two_ranks, weights

NAIVE = {"optim.backbone_rate": 1.0, "optim.layer_decay": 1.0, "optim.heads_first": 0, "optim.warmup_epochs": 0.0}
RUINOUS = NAIVE | {"train.epochs": 6, "health.knn_every": 1.0}
RUIN = """
from typing import Literal

import torch

from ssl_vit.methods.simclr import SimCLR
from ssl_vit.methods.simclr_config import Config as SimCLRConfig
from ssl_vit.registry import register_method


class Config(SimCLRConfig):
    name: Literal["ruin"] = "ruin"


@register_method("ruin", config=Config)
class Ruin(SimCLR):
    def after_step(self, progress):
        with torch.no_grad():
            self.exported().model.norm.weight.zero_()  # so that all images are one
"""


@pytest.fixture
def ruin(monkeypatch: pytest.MonkeyPatch) -> None:
    """SimCLR makes any network worse: to it all images become one."""

    def after_step(self: SimCLR, progress: Progress) -> None:
        with torch.no_grad():
            self.student.backbone.model.norm.weight.zero_()

    monkeypatch.setattr(SimCLR, "after_step", after_step)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three colours, which any network tells apart: in folders of their own, and all in one, of which nobody knows."""
    root = tmp_path_factory.mktemp("colours")
    (root / "flat").mkdir()
    for index in range(48):
        pixels = np.random.default_rng(index).integers(0, 60, (40, 40, 3), dtype=np.uint8)
        pixels[..., index % 3] += 150
        folder = root / "classes" / f"colour{index % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
        shutil.copy(folder / f"{index:02}.png", root / "flat")
    return root


def settings(method: str = "simclr", **more: object) -> dict[str, Any]:
    found = COMMON | {"method.name": method} | {f"method.{key}": value for key, value in SMALL[method].items()}
    return found | {key.replace("__", "."): value for key, value in more.items()}


def run(data: Path, out: Path, flags: dict[str, Any]) -> RunResult:
    return start_run(load_config(flags=flags | {"data.path": str(data)}), out)


def answer(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())["did_it_help"]
    return found


def exported(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "no labels"])
def test_a_run_that_hurts_is_named_and_stopped_and_hands_over_its_start(
    labels: bool, colours: Path, ruin: None, whole_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = settings(backbone__weights=str(whole_run), health__patience=2) | RUINOUS
    done = run(colours / ("classes" if labels else "flat"), tmp_path / "run", more)
    found = answer(tmp_path / "run")
    assert done.steps == 12 < 36, "two looks in a row"
    assert (found["verdict"], found["exported"], found["step"]) == ("hurt", "start", 0)
    assert found["sentence"].startswith("It hurt: k-NN fell" if labels else "It hurt, as far as scores without labels")
    assert [row["name"] for row in found["rows"]] == ["start", "end, step 12", "random weights", "raw pixels"]
    if labels:
        assert found["p"] < 0.05
        assert found["high"] < 0
        assert found["rows"][0]["low"] < found["rows"][0]["values"]["k-NN"] < found["rows"][0]["high"]
    before, after = exported(whole_run / "export"), exported(tmp_path / "run" / "export")
    assert all(torch.equal(before[key], after[key]) for key in before), "to the bit"
    last = exported(tmp_path / "run" / "export-last")
    assert any(not torch.equal(before[key], last[key]) for key in before)
    assert "stopped at step 12: at 2 looks in a row" in caplog.text
    assert "In a new run, lower optim.backbone_rate (now 1)" in caplog.text
    assert "It hurt" in str(done)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["ended_early"].startswith("stopped at step 12")


def test_a_run_at_random_says_its_start_and_its_end(
    whole_run: Path, pictures: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With --val, whose images are compared with those that are learnt from; what is said once is said again."""
    found = answer(whole_run)
    assert [row["name"] for row in found["rows"]] == ["start (random weights)", "end, step 30", "raw pixels"]
    assert found["exported"] == "end"
    assert "24 of 24 images of" in found["what"]
    assert "48 of the training images" in found["what"]
    scored = {row["step"]: row["knn/20"] for row in rows(whole_run) if "knn/20" in row}
    assert [row["values"]["k-NN"] for row in found["rows"][:2]] == pytest.approx([scored[0], scored[30]])
    assert found["sentence"] in (whole_run / "train.log").read_text()
    assert main(["pretrain", str(pictures / "train"), "--out", str(whole_run), "--resume"]) == 0
    out = capfd.readouterr().out
    assert found["sentence"] in out
    assert "start (random weights)" in out


def test_the_best_weights_are_exported_and_the_last_beside_them(
    pictures: Path, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores are given here: a rise at the second of four looks, which is kept."""
    from ssl_vit.eval import yardstick

    given, original = iter([50.0, 40.0, 75.0, 50.0, 45.0, 25.0]), yardstick.Yardstick.score
    kept = list[dict[str, torch.Tensor]]()

    def score(self: yardstick.Yardstick, backbone: Any) -> yardstick.Score:
        kept.append({key: value.clone() for key, value in backbone.model.state_dict().items()})
        right = original(self, backbone).each * 0
        value = next(given)
        right[: round(len(right) * value / 100)] = 1
        return yardstick.Score({"k-NN": value}, right)

    monkeypatch.setattr(yardstick.Yardstick, "score", score)
    more = settings(backbone__weights=str(whole_run), train__epochs=4, health__knn_every=1.0, optim__heads_first=0)
    run(pictures / "train", tmp_path / "run", more)
    found = answer(tmp_path / "run")
    assert (found["verdict"], found["exported"], found["step"]) == ("helped", "best", 12)
    assert found["rows"][1]["name"] == "best, step 12"
    said = "export/ holds the weights of step 12, the best of 4 looks; export-last/ holds those of the last step, 24."
    assert said in found["sentence"]
    for folder, weights_then in (("export", kept[2]), ("export-last", kept[4])):
        after = exported(tmp_path / "run" / folder)
        assert all(torch.equal(after[key], weights_then[key]) for key in after)
    config = json.loads((tmp_path / "run" / "export" / "config.json").read_text())["ssl_vit"]
    assert config["steps"] == 12


class Killed(BaseException):
    """No handler expects it, as none sees a kill."""


@pytest.mark.parametrize("patience", [0, 2])
def test_killed_and_resumed_comes_to_the_same(
    patience: int, colours: Path, ruin: None, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dies after a checkpoint and a look; with patience after the look that would have been its last but one."""
    more = settings(backbone__weights=str(whole_run), health__patience=patience) | RUINOUS | {"train.epochs": 3}
    run(colours / "classes", tmp_path / "whole", more)
    write = Metrics.write

    def dying(metrics: Metrics, step: int, row: dict[str, Any]) -> None:
        if step == 11 and "grad_norm" in row:
            raise Killed
        write(metrics, step, row)

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "write", dying)
        with pytest.raises(Killed):
            run(colours / "classes", tmp_path / "run", more)
    start_run(load_config([tmp_path / "run" / "config.yaml"]), tmp_path / "run", resume=True)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert answer(tmp_path / "run") == answer(tmp_path / "whole")
    assert len([row for row in rows(tmp_path / "run") if "grad_norm" in row]) == (12 if patience else 18)


@pytest.mark.slow
def test_two_processes_stop_together(colours: Path, whole_run: Path, tmp_path: Path) -> None:
    (tmp_path / "ruin.py").write_text(RUIN)
    more = settings(backbone__weights=str(whole_run), health__patience=2) | RUINOUS | {"method.name": "ruin"}
    sets = [word for key, value in more.items() for word in ("--set", f"{key}={value}")]
    argv = ["pretrain", str(colours / "classes"), "--out", str(tmp_path / "run"), *sets, "--set", "train.devices=2"]
    argv += ["--plugin", str(tmp_path / "ruin.py")]
    both = [start(argv, tmp_path / f"said{i}", **env) for i, env in enumerate(two_ranks())]
    for process in both:
        process.join(240)
        assert process.exitcode == 0, (tmp_path / "said0").read_text()
    assert (answer(tmp_path / "run")["exported"], answer(tmp_path / "run")["verdict"]) == ("start", "hurt")
    assert "stopped at step 12" in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(SMALL))
def test_every_method_ends_with_a_sentence_without_labels(method: str, colours: Path, tmp_path: Path) -> None:
    run(colours / "flat", tmp_path / "run", settings(method, train__epochs=1))
    found = answer(tmp_path / "run")
    if method == "detreg":
        assert found["verdict"] == "unchanged"
        assert found["rows"][0]["values"] == found["rows"][1]["values"]
    assert "as far as scores without labels tell: neighbours" in found["sentence"]
    assert list(found["rows"][0]["values"]) == ["neighbours", "RankMe", "LiDAR"]
