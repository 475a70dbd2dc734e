"""Accuracy against cost: scores are those of the network at each setting; settings that can't be are refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_vit.cli import main
from ssl_vit.errors import UserError
from ssl_vit.eval import budget, logistic
from ssl_vit.eval.api import evaluate
from ssl_vit.eval.budget import exit_costs, gmacs
from ssl_vit.eval.job import Job
from tests.eval.conftest import MEAN, STD
from tests.export.conftest import randomised, written

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "drops": (
        "dynamicvit_deit_256_patch16_224",
        {"patch_size": 8, "depth": 3, "embed_dim": 32, "num_heads": 2, "stages": (1, 2)},
    ),
    "exits": ("dvt_t2t_vit_12", {"depth": 1, "embed_dim": 32, "num_heads": 2}),
}


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """By what it does: a run's folder, and its backbone."""
    found = {}
    for kind, (name, args) in NETWORKS.items():
        path = tmp_path_factory.mktemp(kind)
        backbone = randomised(name, image_size=32, model_args=args).eval()
        written(backbone, path / "export", mean=MEAN, std=STD, description={})
        found[kind] = path, backbone
    return found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two strengths are tried instead of seven, by every score."""
    for module in (budget, logistic):
        monkeypatch.setattr(module, "fit_logistic", partial(logistic.fit_logistic, strengths=(1e-2, 1e-1)))


def sides(images: Path) -> dict[str, Path]:
    return {"train": images / "train", "val": images / "val"}


def test_shares_of_patches(adaptive: Any, images: Path) -> None:
    """At the share that it was trained with the score is that of any classifier on its features."""
    run, backbone = adaptive["drops"]
    points = evaluate("budget", run, **sides(images), keep="0.7,0.3,1")["budget"]["points"]
    assert [point["keep"] for point in points] == [0.3, 0.7, 1.0]
    costs = [point["gmacs"] for point in points]
    assert costs == sorted(set(costs))
    assert points[1]["top1"] == evaluate("logistic", run, **sides(images))["logistic"]["top1"]
    assert all(set(point["ms"]) == {"1", "32"} and min(point["ms"].values()) > 0 for point in points)
    assert backbone.model.keep_ratio == 0.7
    assert costs[1] == gmacs(backbone.model, torch.zeros(1, 3, 32, 32))


@pytest.mark.slow
def test_exits(adaptive: Any, images: Path) -> None:
    run, backbone = adaptive["exits"]
    costs = exit_costs(backbone.model, torch.zeros(1, 3, 32, 32))
    assert costs == sorted(costs)
    assert costs[-1] == pytest.approx(gmacs(backbone.model, torch.zeros(1, 3, 32, 32)), rel=0.01)
    result = evaluate("budget", run, **sides(images))
    points = result["budget"]["points"]
    assert [point["budget"] for point in points] == pytest.approx(np.linspace(costs[0], costs[-1], 7))
    for point in points:
        assert sum(point["exits"]) == pytest.approx(100)
        assert point["gmacs"] == pytest.approx(np.dot(point["exits"], costs) / 100)
    assert [points[0]["exits"], points[-1]["exits"]] == [[100, 0, 0], [0, 0, 100]]
    assert 0 < points[3]["exits"][0] < 100
    assert result["protocol"]["images"] == {"train": 120, "val": 45}
    spent = [point["gmacs"] for point in points]
    assert spent == sorted(spent)


def test_one_that_spends_the_same_on_all_is_one_point(
    run: Path, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--{side}={path}" for side, path in sides(images).items()]
    assert main(["eval", "budget", str(run), *flags, f"--figure={tmp_path / 'map.png'}"]) == 0
    [point] = json.loads(capfd.readouterr().out)["budget"]["points"]
    assert set(point) == {"top1", "gmacs", "ms"}
    assert point["top1"] == evaluate("logistic", run, **sides(images))["logistic"]["top1"]
    assert (tmp_path / "map.png").stat().st_size > 10_000
    for name in ("keep", "gmacs"):
        assert main(["eval", "budget", str(run), *flags, f"--{name}=0.5"]) == 2
        [line] = capfd.readouterr().err.splitlines()[-1:]
        assert f"eval budget: {name}: vit_tiny_patch16_224 computes all of every image" in line
        assert f"leave {name} out" in line


@pytest.mark.parametrize(
    ("kind", "asked", "line"),
    [
        ("drops", {"keep": 0.05}, r"keep: keep_ratio is 0\.05, which keeps none of 16 .* it must be 0\.25 or more$"),
        ("drops", {"gmacs": 1}, r"gmacs: .* drops patches and has one exit; set keep; leave gmacs out$"),
        ("exits", {"keep": 0.5}, r"keep: .* has exits and drops no patches; set gmacs; leave keep out$"),
        (
            "exits",
            {"gmacs": 1e-9},
            r"gmacs: 1e-09 is too little: the first exit takes \S+ of an image; it must be that",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_an_image_is_read(
    kind: str, asked: Any, line: str, adaptive: Any, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "extract", lambda *_, **__: pytest.fail("images were read"))
    monkeypatch.setattr(Job, "features", lambda *_, **__: pytest.fail("images were read"))
    with pytest.raises(UserError, match=line):
        evaluate("budget", adaptive[kind][0], **sides(images), **asked)
