"""evaluate(), embed() and load_backbone() on real files; every mistake is one line that names it."""

import copy
import json
import math
import os
import pickle
import shutil

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from torchvision.datasets import FakeData, ImageFolder

from ssl_vit.backbones.registry import create_backbone
from ssl_vit.cli import main
from ssl_vit.errors import RunFailed, UserError
from ssl_vit.eval.api import evaluate, outcome_of
from ssl_vit.eval.embed import embed
from ssl_vit.eval.job import Outcome
from ssl_vit.eval.kinds import kind_class
from ssl_vit.eval.weights import load_backbone
from tests.eval.conftest import MEAN, STD, folder_of
from tests.export.conftest import written


class Bomb:
    """A pickle that leaves a mark where it is executed."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def scikit_learns(run, images, k, tmp_path):
    """The same score from what embed() writes, by class names and without ssl_vit's k-NN."""
    sides = {}
    for side in ("train", "val"):
        arrays = np.load(embed(run, images / side, tmp_path / f"{side}{k}.npz"))
        sides[side] = (arrays["features"].astype(np.float64), arrays["labels"])
    model = KNeighborsClassifier(
        min(k, len(sides["train"][0])), algorithm="brute", metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)
    )
    return 100 * accuracy_score(sides["val"][1], model.fit(*sides["train"]).predict(sides["val"][0]))


def test_knn_of_a_run(run, images, tmp_path):
    result = evaluate("knn", run, train=images / "train", val=images / "val", json=tmp_path / "knn.json")
    assert json.loads((tmp_path / "knn.json").read_text()) == result
    assert list(result) == ["knn", "by_temperature", "protocol"]
    assert result["by_temperature"]["0.07"] == result["knn"]
    for k in (10, 20, 100, 200):
        assert result["knn"][str(k)] == pytest.approx(scikit_learns(run, images, k, tmp_path))
    assert result["knn"]["10"] > 50  # chance is 33
    protocol = result["protocol"]
    assert protocol["k"] == {"10": 10, "20": 20, "100": 100, "200": 120}  # the bank has 120
    assert protocol["temperature"] == 0.07
    assert protocol["images"] == {"train": 120, "val": 45}
    assert protocol["classes"] == 3
    assert (protocol["image_size"], protocol["mean"], protocol["std"]) == (32, list(MEAN), list(STD))
    listed = (run / "export" / "SHA256SUMS").read_text()
    assert f"{protocol['weights_sha256']}  model.safetensors" in listed


def test_linear_of_a_run(run, images, tmp_path):
    result = evaluate("linear", run, train=images / "train", val=images / "val", json=tmp_path / "linear.json")
    assert json.loads((tmp_path / "linear.json").read_text()) == result
    assert result["linear"]["top1"] > 50
    assert str(result["linear"]["lr"]) in result["held_out"]
    assert result["protocol"]["seed"] == 0


def test_a_run_and_a_timm_folder_are_the_same_weights(run, vit, tmp_path):
    shutil.copytree(run / "export", tmp_path / "folder")
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        expected = vit(image).pooled
        for weights in (run, tmp_path / "folder"):
            torch.testing.assert_close(load_backbone(weights).eval()(image).pooled, expected)
    folder = load_backbone(tmp_path / "folder", backbone="vit_tiny_patch16_224")
    assert folder.info.name == "vit_tiny_patch16_224"
    with pytest.raises(UserError, match="holds vit_tiny_patch16_224"):
        load_backbone(tmp_path / "folder", backbone="resnet18")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_weights_file_with_its_backbones_name(suffix, images, tmp_path):
    backbone = create_backbone("test_vit")
    path = tmp_path / f"weights{suffix}"
    (torch.save if suffix == ".pth" else save_file)(backbone.model.state_dict(), path)
    result = evaluate("knn", path, train=images / "train", val=images / "val", backbone="test_vit")
    assert result["protocol"]["encoder"] == "test_vit"


def test_embed_writes_features_files_and_class_names(run, vit, images, tmp_path):
    arrays = np.load(embed(run, images / "val", tmp_path / "features.npz"))
    assert arrays["features"].shape == (45, 48)
    assert arrays["features"].dtype == np.float32
    assert arrays["files"][16] == "birch/001.jpg"
    assert arrays["labels"].tolist() == ["ash"] * 15 + ["birch"] * 15 + ["cedar"] * 15
    assert os.listdir(tmp_path) == ["features.npz"]
    flat = np.load(embed(run, images / "val" / "cedar", tmp_path / "flat.npz"))
    assert flat["labels"].tolist() == [""] * 15
    np.testing.assert_allclose(flat["features"], arrays["features"][30:], rtol=1e-4, atol=1e-5)


def test_embed_never_overwrites(run, images, tmp_path):
    out = tmp_path / "features.npz"
    out.write_bytes(b"precious")
    with pytest.raises(UserError, match="never overwritten"):
        embed(run, images / "val", out)
    assert out.read_bytes() == b"precious"
    with pytest.raises(UserError, match=r"ends in \.npz, \.npy"):
        embed(run, images / "val", tmp_path / "features.txt")
    with pytest.raises(UserError, match="does not exist"):
        embed(run, images / "val", tmp_path / "no" / "features.npz")


def test_images_that_cannot_be_scored(run, images, tmp_path):
    train, val = images / "train", images / "val"
    with pytest.raises(UserError, match="did you mean knn"):
        evaluate("k-nn", run, train=train, val=val)
    with pytest.raises(UserError, match="no labels"):
        evaluate("knn", run, train=train, val=val / "ash")
    other = folder_of(tmp_path / "other", 2, classes=("ash", "birch", "oak"))
    with pytest.raises(UserError, match=r"different classes: cedar only in --train"):
        evaluate("knn", run, train=train, val=other)
    with pytest.raises(UserError, match=r"sub-folders are sets, not classes; give .*images.*/train"):
        evaluate("knn", run, train=images, val=val)
    with pytest.raises(UserError, match="hold the same images"):
        evaluate("knn", run, train=val, val=val)
    empty = folder_of(tmp_path / "empty", 2)
    (empty / "yew").mkdir()
    with pytest.raises(UserError, match=r"empty.*yew"):
        evaluate("knn", run, train=empty, val=val)
    unreadable = folder_of(tmp_path / "unreadable", 2)
    for path in (unreadable / "birch").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match="no readable image of birch"):
        evaluate("knn", run, train=train, val=unreadable)
    single = tmp_path / "single"
    single.mkdir()
    shutil.copy(train / "ash" / "000.png", single)
    with pytest.raises(UserError, match="single"):
        evaluate("knn", run, train=single, val=val)
    with pytest.raises(UserError, match="does not exist"):
        evaluate("knn", run, train=train, val=val, json=tmp_path / "no" / "knn.json")


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_a_class_that_val_lacks_is_said_and_the_rest_scored(kind, run, images, tmp_path, caplog):
    """The same answers for the images that are there, whichever class is missing."""
    whole = outcome_of(kind, run, train=images / "train", val=images / "val")[0].correct.reshape(3, 15)
    for lacks, name in enumerate(("ash", "birch", "cedar")):
        shutil.copytree(images / "val", tmp_path / name)
        shutil.rmtree(tmp_path / name / name)
        if name == "birch":  # an empty folder says no more than none
            (tmp_path / name / name).mkdir()
        outcome, protocol = outcome_of(kind, run, train=images / "train", val=tmp_path / name)
        assert f"no images of {name} (1 of 3 classes); the score is over the others" in caplog.text
        np.testing.assert_array_equal(outcome.correct, np.delete(whole, lacks, 0).ravel())
        assert (protocol.classes, protocol.images["val"]) == (3, 30)


def test_val_may_hold_a_single_class(run, images, tmp_path):
    shutil.copytree(images / "val" / "cedar", tmp_path / "val" / "cedar")
    whole = outcome_of("knn", run, train=images / "train", val=images / "val")[0].correct
    alone = outcome_of("knn", run, train=images / "train", val=tmp_path / "val")[0].correct
    np.testing.assert_array_equal(alone, whole[30:])


def test_images_beside_the_classes_are_named_and_left_out(run, images, tmp_path, caplog):
    expected = evaluate("knn", run, train=images / "train", val=images / "val")
    for side in ("train", "val"):
        shutil.copytree(images / side, tmp_path / side)
        shutil.copy(images / side / "ash" / "000.png", tmp_path / side / "cover.png")
    found = evaluate("knn", run, train=tmp_path / "train", val=tmp_path / "val")
    assert found["knn"] == expected["knn"]
    assert "--val " in caplog.text
    assert "1 of 46 images lie beside the class folders and are left out: cover.png" in caplog.text
    written = np.load(embed(run, tmp_path / "val", tmp_path / "features.npz"))
    assert dict(zip(written["files"], written["labels"], strict=True))["cover.png"] == ""
    assert sorted(written["labels"])[1:] == ["ash"] * 15 + ["birch"] * 15 + ["cedar"] * 15
    assert "1 images beside the class folders get no label: cover.png" in caplog.text


def test_embed_says_that_there_are_no_labels(run, images, tmp_path, caplog):
    assert set(np.load(embed(run, images / "val" / "ash", tmp_path / "features.npz"))["labels"]) == {""}
    assert "no labels are written: the images are not in two or more folders of classes" in caplog.text


@pytest.mark.fault
@pytest.mark.parametrize("forced", [False, True])
def test_a_pickle_that_runs_code_is_refused(forced, images, tmp_path, monkeypatch):
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    mark = tmp_path / "executed"
    torch.save({"cls_token": torch.zeros(1), "x": Bomb(mark)}, tmp_path / "new.pth")
    torch.save({"x": Bomb(mark)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Bomb(mark), protocol=2))
    for name in ("new.pth", "old.pth", "bare.pt"):
        weights = tmp_path / name
        with pytest.raises(UserError, match=name):
            evaluate("knn", weights, train=images / "train", val=images / "val", backbone="test_vit")
        with pytest.raises(UserError, match=name):
            embed(weights, images / "val", tmp_path / "out.npz", backbone="test_vit")
    assert not mark.exists()
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.fault
def test_weights_that_do_not_fit(run, vit, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(vit.model.state_dict(), path)
    with pytest.raises(UserError, match=r"--backbone NAME"):
        load_backbone(path)
    with pytest.raises(UserError, match=r"cls_token.*48.*64|cls_token.*64.*48"):
        load_backbone(path, backbone="test_vit")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        load_backbone(path, backbone="vit_tiny_patch16_224")
    with pytest.raises(UserError, match="no such file"):
        load_backbone(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds neither model\.safetensors"):
        load_backbone(tmp_path)


def test_datasets_are_scored_as_their_folders(run, images, tmp_path):
    """The same k-NN, in Python and on the command line, of a folder, of torchvision's and of a saved dataset."""
    expected = evaluate("knn", run, train=images / "train", val=images / "val")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(images), cache_dir=str(tmp_path / "cache"))
    loaded.save_to_disk(tmp_path / "saved")
    of_objects = evaluate("knn", run, train=ImageFolder(str(images / "train")), val=loaded["validation"])
    assert of_objects["knn"] == expected["knn"]
    saved = f"hf:{tmp_path / 'saved'},split="
    argv = ["eval", "knn", str(run), "--train", f"{saved}train", "--val", f"{saved}validation"]
    assert main([*argv, "--json", str(tmp_path / "knn.json")]) == 0
    assert json.loads((tmp_path / "knn.json").read_text())["knn"] == expected["knn"]
    found = np.load(embed(run, loaded["validation"], tmp_path / "features.npz"))
    assert found["files"][0].startswith("row 0: ")
    assert sorted(found["labels"]) == sorted(np.load(embed(run, images / "val", tmp_path / "f.npz"))["labels"])
    with pytest.raises(
        UserError, match=r"--train python:.*: no labels; expected two or more sub-folders of images, one for"
    ):
        evaluate("knn", run, train=FakeData(8), val=images / "val")
    with pytest.raises(UserError, match=r"--train python:.*FakeData: this score reads files of more than images"):
        evaluate("segmentation", run, train=FakeData(8), val=images / "val")


def test_numbers_that_are_none_are_null_and_said(run, images, monkeypatch, capsys, caplog):
    told = Outcome({"a": math.nan, "b": [1.0, math.inf]}, {})
    monkeypatch.setattr(kind_class("clustering"), "score", lambda self, job: told)
    assert main(["eval", "clustering", str(run), "--val", str(images / "val")]) == 0
    printed = json.loads(capsys.readouterr().out, parse_constant=lambda text: pytest.fail(text))
    assert printed["clustering"] == {"a": None, "b": [1.0, None]}
    assert "eval clustering: clustering: a can't be told from these images: nan, written as null" in caplog.text


@pytest.mark.parametrize("kind", ["knn", "linear", "clustering"])
def test_features_that_are_not_finite_give_no_score(kind, vit, images, tmp_path):
    """The weights are finite, what they compute is not."""
    broken = copy.deepcopy(vit)
    with torch.no_grad():
        broken.model.blocks[-1].mlp.fc2.bias[0] = 3e38
    written(broken, tmp_path / "export", mean=MEAN, std=STD, description={})
    sides = {"val": images / "val"} | ({} if kind == "clustering" else {"train": images / "train"})
    with pytest.raises(RunFailed, match="its features hold NaN or infinity; the weights are broken"):
        evaluate(kind, tmp_path, **sides)


def test_more_unreadable_images_than_few_end_a_score(run, images, tmp_path):
    """As many as elsewhere; more where that is asked for, and the protocol says how many."""
    shutil.copytree(images / "val", tmp_path / "val")
    for file in sorted((tmp_path / "val" / "ash").iterdir())[:9]:
        file.write_bytes(b"nothing")
    sides = {"train": images / "train", "val": tmp_path / "val"}
    with pytest.raises(RunFailed, match=r"--val .*: 9 of 45 images \(20.0%\) could not be read.*or raise --max-bad"):
        evaluate("knn", run, **sides)
    assert evaluate("knn", run, **sides, max_bad=0.2)["protocol"]["left_out"] == {"train": 0, "val": 9}
