"""What must be impossible: train mode, augmented images, the test set for selection."""

import inspect
import json

import numpy as np
import pytest
import torch
from torch import nn

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


@pytest.mark.parametrize(
    ("kind", "name"), [("logistic", "top1"), ("grid", "top1"), ("retrieval", "mAP"), ("fewshot", "10")]
)
def test_every_other_kind_on_real_files(kind, name, run, images):
    scores = evaluate(kind, run, train=images / "train", val=images / "val")[kind]
    value = scores[name]["mean"] if kind == "fewshot" else scores[name]
    assert 34 < value <= 100  # chance is 33
