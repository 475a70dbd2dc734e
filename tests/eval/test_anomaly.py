"""Anomalies: distances against scikit-learn's, the coreset against the plain loop, and defects that are to be seen."""

from __future__ import annotations

import json
import shutil

import faiss
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from ssl_vit.cli import main
from ssl_vit.data.augment import normalise
from ssl_vit.data.evalset import EvalDataset
from ssl_vit.data.sources import open_source
from ssl_vit.errors import UserError
from ssl_vit.eval.anomaly import auroc, greedy_coreset, nearest_distances
from ssl_vit.eval.api import evaluate
from ssl_vit.eval.embed import embed
from ssl_vit.eval.readout import Readout, patch_maps
from ssl_vit.eval.weights import load_backbone


def pictures(folder, count, seed, defect=False):
    """Striped cloth; a defect is a bright spot, whose mask lies in ground_truth."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.tile(60 + 50 * (np.arange(64) // 4 % 2), (64, 1))[..., None].repeat(3, 2)
        pixels = pixels + rng.normal(scale=6, size=pixels.shape)
        if defect:
            y, x = rng.integers(8, 44, 2)
            pixels[y : y + 12, x : x + 12] = (250, 40, 40)
            mask = np.zeros((64, 64), np.uint8)
            mask[y : y + 12, x : x + 12] = 255
            truth = folder.parents[1] / "ground_truth" / folder.name
            truth.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(truth / f"{i}_mask.png")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def cloth(tmp_path_factory):
    root = tmp_path_factory.mktemp("cloth")
    pictures(root / "train" / "good", 6, 0)
    pictures(root / "test" / "good", 5, 1)
    pictures(root / "test" / "spot", 5, 2, defect=True)
    return root


def test_defects_are_found_and_drawn(run, cloth, tmp_path, capsys):
    sides = ["--good", str(cloth / "train"), "--test", str(cloth / "test"), "--coreset", "0.5"]
    out, picture = tmp_path / "score.json", tmp_path / "heat.png"
    assert main(["eval", "anomaly", str(run), *sides, "--json", str(out), "--figure", str(picture)]) == 0
    result = json.loads(out.read_text())
    assert result["anomaly"]["image_AUROC"] == 100.0
    assert result["anomaly"]["by_kind"] == {"spot": 100.0}
    assert 70 < result["anomaly"]["pixel_AUROC"] <= 100
    assert len(result["examples"]) == 5
    assert Image.open(picture).width > 500
    assert "examples" not in json.loads(capsys.readouterr().out)


def test_distances_are_scikit_learns():
    rng = np.random.default_rng(0)
    memory, queries = rng.normal(size=(300, 24)).astype(np.float32), rng.normal(size=(90, 24)).astype(np.float32)
    queries[:5] = memory[:5] + 1e-4
    index = faiss.IndexFlatL2(24)
    index.add(memory)
    wanted = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(memory.astype(np.float64)).kneighbors(queries)[0]
    np.testing.assert_allclose(nearest_distances(memory, index, queries), wanted[:, 0], atol=1e-6)
    labels = rng.random(90) < 0.4
    scores = np.round(wanted[:, 0], 1)  # with ties
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert np.isnan(auroc(scores, np.zeros(90, bool)))


@pytest.mark.parametrize("width", [16, 128])
def test_the_coreset_is_the_plain_loops(width):
    rows = np.random.default_rng(0).normal(size=(400, width)).astype(np.float32)
    found = greedy_coreset(rows, 40, seed=3)
    chosen = [int(found[0])]
    for _ in range(39):
        apart = np.stack([np.linalg.norm(rows.astype(np.float64) - rows[i], axis=1) for i in chosen]).min(0)
        chosen.append(int(apart.argmax()))
    assert found.tolist() == chosen
    assert len(set(greedy_coreset(rows[:5], 9, 0).tolist())) == 5


def test_mistakes_are_one_clear_line(run, cloth, tmp_path, caplog):
    with pytest.raises(UserError, match=r"--test .*: no sub-folder 'good'; give a folder with good/"):
        evaluate("anomaly", run, good=cloth / "train", test=cloth / "test" / "spot")
    with pytest.raises(UserError, match=r"--masks .*: no such folder"):
        evaluate("anomaly", run, good=cloth / "train", test=cloth / "test", masks=str(tmp_path / "none"))
    with pytest.raises(UserError, match="neighbourhood: expected an odd number"):
        evaluate("anomaly", run, good=cloth / "train", test=cloth / "test", neighbourhood=2)
    evaluate("anomaly", run, good=cloth / "test" / "good", test=cloth / "test", coreset=0.2)
    assert "5 images lie in --good" in caplog.text


def test_patches_of_every_image_are_memory_mapped(run, images, tmp_path, capsys):
    folder = tmp_path / "set"
    shutil.copytree(images / "val" / "ash", folder)
    (folder / "aaa.png").write_bytes(b"no image")
    out = tmp_path / "patches.npy"
    assert main(["embed", str(run), str(folder), "--out", str(out), "--patches"]) == 0
    rows, facts = np.load(out, mmap_mode="r"), json.loads(out.with_suffix(".json").read_text())
    assert rows.dtype == np.float16
    assert rows.shape == (15, *facts["grid"], 48)
    assert facts["files"][0] == "000.png"
    assert facts["protocol"]["left_out"] == {"data": 1}
    backbone, readout = load_backbone(run).eval(), Readout.of(load_backbone(run).info)
    sample = EvalDataset(open_source(str(folder)), readout.image_size)[0]
    with torch.inference_mode():
        wanted = patch_maps(backbone, normalise(sample.image[None], readout.mean, readout.std))[0]
    np.testing.assert_allclose(rows[0], wanted.permute(1, 2, 0).numpy(), atol=2e-2)
    with pytest.raises(UserError, match=r"patches are written to a \.npy"):
        embed(run, folder, tmp_path / "patches.npz", patches=True)
    with pytest.raises(UserError, match="the patches of one layer are written; name one"):
        embed(run, folder, tmp_path / "two.npy", patches=True, layers=(-2, -1))
    assert not (tmp_path / "two.npy").exists()
