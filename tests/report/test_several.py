"""Several runs in one page, and results of scores: a table with intervals, curves, and what may not be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ssl_vit.cli import main
from ssl_vit.errors import UserError
from ssl_vit.eval.intervals import half_interval, wilson
from ssl_vit.report.page import write_page
from ssl_vit.report.results import found_in, is_result
from ssl_vit.report.several import write_several
from tests.report.folders import PROTOCOL, Read, run_folder

ENTRY = {"encoder": "vit", "top1": 70.0, "low": 67.0, "high": 73.0, "difference_low": 2.0, "difference_high": 8.0}
MEAN = {"mean": 19.0, "low": 17.0, "high": 21.0, "seeds": [18.0, 19.0, 20.0]}
RESULTS: dict[str, dict[str, Any]] = {
    "detection": {"10%": {"scratch": {"mAP": MEAN}, "weights": {"mAP": MEAN}, "verdict": "the weights help: +7.0 mAP"}},
    "robustness": {
        "clean": 71.0,
        "corruptions": {"fog": {"1": 60.5, "3": 31.5}, "snow": {"1": 70.0, "3": 1.5}},
        "hidden": {"25": 66.0},
        "shuffled": {},
        "fgsm": {"1": 40.0},
        "pgd": {"1": 30.0},
    },
    "segmentation": {"linear": {"mIoU": 41.25, "accuracy": 80.0}, "knn": {"mIoU": 35.0, "accuracy": 75.0}},
    "budget": {
        "points": [{"keep": k, "top1": 60 + k, "gmacs": 4 * k, "ms": {"1": 9 * k, "32": k}} for k in (1.0, 0.5)]
    },
    "linear": {"top1": 70.25, "held_out": {"0.1": 69.5}},
}
SAID = {
    "detection": ["the weights help: +7.0 mAP", "from scratch", "from the weights"],
    "robustness": ["fog", "31.5", "Patches hidden", "FGSM"],
    "segmentation": ["mIoU", "a linear classifier", "41.2"],
    "budget": ["over multiply-adds", "over time, batches of 32"],
    "linear": ["top1", "70.25", "held_out, 0.1"],
}


def result(kind: str) -> dict[str, Any]:
    return {kind: RESULTS[kind], "protocol": PROTOCOL | {"score": kind}}


def compared() -> dict[str, Any]:
    entries = [
        ENTRY | {"run": "first", "difference": None, "p": None},
        ENTRY | {"run": "<b>second</b>", "difference": 5.0, "p": 0.01},
    ]
    return {"kind": "knn", "images": 1000, "protocol": "abc", "entries": entries, "costs": []}


def test_segmenters_that_were_trained_are_drawn_as_detectors(tmp_path: Path) -> None:
    arms = {arm: {"mIoU": MEAN, "accuracy": MEAN} for arm in ("scratch", "weights")}
    found = {"segmentation": {"100%": arms | {"verdict": "no difference can be told"}}}
    (tmp_path / "found.json").write_text(json.dumps(found | {"protocol": PROTOCOL | {"score": "segmentation"}}))
    read = Read(write_several([tmp_path / "found.json"], tmp_path / "page.html").read_text())
    assert all(words in read.words for words in ("no difference can be told", "mIoU, %", "from scratch", "accuracy"))


@pytest.mark.parametrize("kind", RESULTS)
def test_each_kind_of_score_is_drawn(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps(result(kind)))
    page = write_several([path], tmp_path / "page.html").read_text()
    read = Read(page)
    assert read.sections == ["scores"]
    assert all(words in read.words for words in SAID[kind])
    assert "protocol abc" in read.words
    shades = [each.get("style") for each in read.all("td") if each.get("style")]
    assert len(shades) == (4 if kind == "robustness" else 0)


def test_a_comparison_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "compared.json"
    path.write_text(json.dumps(compared()))
    read = Read(write_several([path], tmp_path / "page.html").read_text())
    assert "+5.0, p 0.01" in read.words
    assert "<b>second</b>" in read.words
    assert read.all("b") == []


def test_results_that_lie_in_a_run_are_on_its_page(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    (run / "robustness.json").write_text(json.dumps(result("robustness")))
    (run / "scores").mkdir()
    (run / "scores" / "linear.json").write_text(json.dumps(result("linear")))
    (run / "data.json").write_text(json.dumps({"protocol": {"score": "x"}, "x": 1}))
    (run / "other.json").write_text("[1, 2]")
    assert [path.name for path, _ in found_in(run)] == ["robustness.json", "linear.json"]
    read = Read(write_page(run).read_text())
    assert "scores" in read.sections
    assert "Robustness (robustness.json)" in read.words


def test_runs_stand_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run_folder(tmp_path / f"dino-{seed}", knn=60.0 + seed, seed=seed) for seed in range(3)]
    runs.append(run_folder(tmp_path / "mae", knn=50.0, method__name="mae"))
    out = tmp_path / "page.html"
    assert main(["report", *map(str, runs), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    read = Read(out.read_text())
    assert read.sections == ["runs", "seeds", "curves", "differences"]
    low, high = wilson(round(0.61 * 200), 200)
    assert f"61.0 ({low:.1f} to {high:.1f})" in read.words
    assert f"61.0 ± {half_interval([60.0, 61.0, 62.0]):.1f}" in read.words
    assert "Take care" not in read.words
    rows = read.words.split("What differs in their settings")[1]
    assert "method.name dino dino dino mae" in rows
    assert "train.seed 0 1 2 0" in rows
    keys = [str(each["class"]) for each in read.all("i") if str(each.get("class", "")).startswith("key")]
    assert keys == ["key c0", "key c0", "key c0", "key c1"]


def test_scores_of_two_protocols_are_told_apart(tmp_path: Path) -> None:
    runs = [run_folder(tmp_path / name) for name in ("a", "b")]
    metrics = runs[1] / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"k": [20]', '"k": [10]'))
    assert "may not be compared" in Read(write_several(runs, tmp_path / "page.html").read_text()).words


def test_what_is_no_run_and_no_result_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"protocol": {"score": "knn"}}')
    assert not is_result(json.loads(other.read_text()))
    with pytest.raises(UserError, match="no result: expected a"):
        write_several([other], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
    run = run_folder(tmp_path / "run")
    assert main(["report", str(run), str(run)]) == 2
    assert "--out FILE is required for several runs" in capsys.readouterr().err
    (tmp_path / "there.html").write_text("mine")
    assert main(["report", str(run), "--out", str(tmp_path / "there.html")]) == 2
    assert (tmp_path / "there.html").read_text() == "mine"
