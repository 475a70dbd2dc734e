"""Comparing runs: the statistics against scipy, and the command on two real exports."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from scipy.stats import binomtest

from ssl_vit.cli import main
from ssl_vit.errors import UserError
from ssl_vit.eval.api import evaluate
from ssl_vit.eval.compare import compare, holm, mcnemar, paired_difference, wilson
from tests.eval.conftest import MEAN, STD
from tests.export.conftest import TINY_VIT, randomised, written


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another network: one block of random weights, wider."""
    path = tmp_path_factory.mktemp("other")
    backbone = randomised("vit_tiny_patch16_224", model_args=TINY_VIT | {"embed_dim": 24, "num_heads": 2, "depth": 1})
    written(backbone, path / "export", mean=MEAN, std=STD, description={})
    return path


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (5, 0), (3, 9), (40, 40), (2000, 2150), (12000, 13000)])
def test_the_paired_test_is_scipys_binomial_one(only_a, only_b):
    a = np.array([True] * only_a + [False] * only_b + [True, False] * 10)
    b = np.array([False] * only_a + [True] * only_b + [True, False] * 10)
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(a, b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("right", "images"), [(0, 40), (7, 40), (40, 40), (730, 1000)])
def test_the_interval_is_scipys_wilson(right, images):
    expected = binomtest(right, images).proportion_ci(method="wilson")
    assert wilson(right, images) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-4)


def test_the_interval_of_a_difference_covers_as_often_as_it_says():
    """Of 2,000 draws with a true difference of 10 points 95 % cover it, within three deviations."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        first = rng.random(300) < 0.6
        second = np.where(rng.random(300) < 0.25, True, first)  # 0.6 + 0.4 x 0.25
        _, low, high = paired_difference(first, second)
        covered += low <= 10 <= high
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)


def test_holm_by_hand():
    assert holm([0.2]) == [0.2]
    assert holm([0.9, 0.001, 0.6]) == pytest.approx([1.0, 0.003, 1.0])


def test_the_command_draws_and_says_what_eval_says(run, other, images, tmp_path, capsys):
    sides = ["--train", str(images / "train"), "--val", str(images / "val")]
    files = ["--json", str(tmp_path / "out.json"), "--figure", str(tmp_path / "out.png")]
    assert main(["compare", str(run), str(other), str(run), *sides, *files]) == 0
    said = capsys.readouterr().out.splitlines()
    found = json.loads((tmp_path / "out.json").read_text())
    first, second, again = found["entries"]
    for entry, weights in ((first, run), (second, other)):
        alone = evaluate("knn", weights, train=images / "train", val=images / "val", k=(20,))
        assert entry["top1"] == alone["knn"]["20"]
        assert found["protocol"] == alone["protocol"]["hash"]
    assert second["difference"] == pytest.approx(second["top1"] - first["top1"])
    assert (again["difference"], again["p"]) == (0, 1)
    assert said[1].startswith(str(run))
    assert said[-1].startswith("knn, 45 images")
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.size[0] > 1000


def test_costs_stand_beside_the_scores(run, other, images, tmp_path, capsys):
    """Parameters and bytes are those of the files, multiply-adds those counted by hand; times are only above 0."""
    sides = ["--train", str(images / "train"), "--val", str(images / "val"), "--costs"]
    files = ["--json", str(tmp_path / "out.json"), "--figure", str(tmp_path / "out.png")]
    assert main(["compare", str(run), str(other), *sides, *files]) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    assert [each["run"] for each in found["costs"]] == [str(run), str(other)]
    for each, weights in zip(found["costs"], (run, other), strict=True):
        file = weights / "export" / "model.safetensors"
        state = load_file(file)
        assert each["parameters"] == sum(value.numel() for value in state.values())
        assert each["bytes"] == file.stat().st_size
        assert each["image_size"] == 32
        assert set(each["ms"]) == {"1", "32"}
        assert min(each["ms"].values()) > 0
        dim, tokens, patch = state["cls_token"].shape[-1], state["pos_embed"].shape[1], state["patch_embed.proj.weight"]
        blocks = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
        by_hand = (tokens - 1) * patch.numel() + blocks * (12 * tokens * dim**2 + 2 * tokens**2 * dim)
        assert each["gmacs"] == pytest.approx(by_hand / 1e9, rel=1e-6)
    assert "parameters    GMACs   ms at 1   ms at 32" in said
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.size[0] > 1500


def test_runs_that_read_other_features_are_refused(run, tmp_path, images):
    """The grid reads class tokens where there are some, and means alone where there are none."""
    written(randomised("test_resnet", image_size=32), tmp_path / "export", mean=MEAN, std=STD, description={})
    with pytest.raises(UserError, match="scored in another way"):
        compare([run, tmp_path], images / "train", images / "val", kind="grid", depths=(1,))


def test_one_run_or_a_kind_without_pairs_is_refused(run, images):
    sides = {"train": images / "train", "val": images / "val"}
    with pytest.raises(UserError, match="give two or more"):
        compare([run], **sides)
    with pytest.raises(UserError, match="choose knn, linear"):
        compare([run, run], kind="clustering", **sides)
