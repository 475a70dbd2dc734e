"""What must be impossible: train mode, augmented images, the test set for selection."""

import inspect
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ssl_vit.data import inventory
from ssl_vit.data.sources import open_source
from ssl_vit.eval import fewshot, grid, job, linear, logistic
from ssl_vit.eval.api import evaluate
from ssl_vit.eval.features import extract
from ssl_vit.eval.online import OnlineScore
from ssl_vit.eval.readout import Readout
from ssl_vit.eval.weights import load_backbone


def test_a_backbone_in_train_mode_gives_the_same_features(vit, images):
    source, readout = open_source(images / "val"), Readout.of(vit.info)
    expected = extract(vit, source, readout, device="cpu").features
    dropout = vit.model.blocks[0].mlp.drop1
    vit.model.blocks[0].mlp.drop1 = nn.Dropout(0.9)
    try:
        found = extract(vit.train(), source, readout, device="cpu").features
        assert vit.training
    finally:
        vit.model.blocks[0].mlp.drop1 = dropout
        vit.eval()
    np.testing.assert_array_equal(found, expected)


def test_nothing_can_ask_for_augmentation_or_for_another_mode():
    """A readout holds numbers and names, no function; what is altered on purpose never comes from Job.features."""
    assert all(isinstance(value, int | str | tuple) for value in vars(Readout(32, (0, 0, 0), (1, 1, 1))).values())
    assert list(inspect.signature(job.Job.features).parameters) == ["self", "source", "side", "readout"]
    assert not {"mode", "training", "transform", "augment"} & set(inspect.signature(extract).parameters)


@pytest.mark.parametrize("fit", [linear.fit_linear, logistic.fit_logistic, fewshot.fit_probe, grid.fit_grid])
def test_what_is_chosen_is_chosen_without_a_test_set(fit):
    names = set(inspect.signature(fit).parameters)
    assert {"features", "labels"} <= names
    assert names <= {
        "features",
        "labels",
        "classes",
        "choices",
        "rates",
        "strengths",
        "epochs",
        "batch_size",
        "seed",
        "device",
        "dtype",
    }


@pytest.mark.parametrize("kind", ["linear", "logistic", "grid"])
def test_val_is_read_once_the_classifier_is_settled(kind, run, images, monkeypatch):
    events, features, predict = [], job.Job.features, linear.LinearProbe.predict

    def noted(self, source, side, readout=None):
        events.append(side)
        return features(self, source, side, readout)

    monkeypatch.setattr(job.Job, "features", noted)
    for module, name in ((linear, "fit_linear"), (logistic, "fit_logistic"), (grid, "fit_grid")):
        fit = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args, fit=fit, **options: events.append("fit") or fit(*args, **options)
        )
    monkeypatch.setattr(linear.LinearProbe, "predict", lambda *args: events.append("predict") or predict(*args))
    evaluate(kind, run, train=images / "train", val=images / "val")
    assert events == ["train", "fit", "val", "predict"]


def test_online_is_offline_to_the_last_digit(run, images):
    offline = evaluate("knn", run, train=images / "train", val=images / "val")
    backbone = load_backbone(run)
    score = OnlineScore(open_source(images / "train"), open_source(images / "val"), Readout.of(backbone.info))
    with torch.random.fork_rng():
        online, protocol = score(backbone.train())
    assert online == offline["knn"]
    assert protocol.hash == offline["protocol"]["hash"]


def test_the_hash_tells_protocols_apart_and_not_weights(run, images, tmp_path):
    sides = {"train": images / "train", "val": images / "val"}

    def hash_of(**options):
        return evaluate("knn", run, **sides, **options)["protocol"]["hash"]

    assert hash_of() == hash_of()
    others = [hash_of(k=(5,)), hash_of(temperature=(0.1,)), hash_of(layers=(-2, -1)), hash_of(pooling="mean")]
    assert len({hash_of(), *others}) == 5
    result = evaluate("clustering", run, val=images / "val", json=tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == result
    assert 0 <= result["clustering"]["NMI"] <= 100


def bitmaps(folder, shade=0):
    """Two classes of four bitmaps: names and sizes are the same whatever the shade."""
    for name in ("ash", "birch"):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (40, 40), (20 * i, shade, 9)).save(folder / name / f"{i}.bmp")
    return folder


def test_the_hash_sees_what_is_in_the_files(run, tmp_path):
    """An image that was edited in place, of the same size, is another; a copy of the folder is the same."""
    sides = {"train": bitmaps(tmp_path / "train"), "val": bitmaps(tmp_path / "val", shade=99)}
    backbone = load_backbone(run)

    def protocols():
        online = OnlineScore(*map(open_source, sides.values()), Readout.of(backbone.info))(backbone)[1]
        return [evaluate("knn", run, **sides, k=(1,))["protocol"], online.as_dict()]

    before = protocols()
    assert all(each["by_content"] == {"train": True, "val": True} for each in before)
    shutil.copytree(sides["train"], tmp_path / "copy")
    sides["train"] = tmp_path / "copy"
    assert [each["hash"] for each in protocols()] == [each["hash"] for each in before]
    Image.new("RGB", (40, 40), (200, 1, 1)).save(sides["val"] / "ash" / "0.bmp")
    for then, now in zip(before, protocols(), strict=True):
        assert then["hash"] != now["hash"]
        assert then["data_sha256"]["train"] == now["data_sha256"]["train"]


def test_contents_of_large_sets_are_not_read_and_that_is_said(run, tmp_path, monkeypatch):
    monkeypatch.setattr(inventory, "CONTENT", 1000)
    sides = {"train": bitmaps(tmp_path / "train"), "val": bitmaps(tmp_path / "val", shade=99)}
    (sides["val"] / "ash" / "0.bmp").rename(sides["val"] / "ash" / "9.bmp")
    protocol = evaluate("knn", run, **sides, k=(1,))["protocol"]
    assert protocol["by_content"] == {"train": False, "val": False}


@pytest.mark.parametrize(
    ("kind", "name"), [("logistic", "top1"), ("grid", "top1"), ("retrieval", "mAP"), ("fewshot", "10")]
)
def test_every_other_kind_on_real_files(kind, name, run, images):
    scores = evaluate(kind, run, train=images / "train", val=images / "val")[kind]
    value = scores[name]["mean"] if kind == "fewshot" else scores[name]
    assert 34 < value <= 100  # chance is 33
