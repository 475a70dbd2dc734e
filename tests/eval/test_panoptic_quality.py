"""Panoptic quality against torchmetrics', and its rules for crowds by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.detection import PanopticQuality as Theirs

from ssl_vit.data.segments import NOWHERE, Segments
from ssl_vit.eval.panoptic_quality import PanopticQuality

THINGS = (True, True, False, False)


def scene(rng, noise):
    """Blocks of segments, and the same with some of them moved, renamed or given nothing."""
    map_ = np.kron(rng.integers(0, 9, (6, 6)), np.ones((8, 8), np.int64))
    labels = rng.integers(0, 4, 9)
    for label in (2, 3):  # stuff is one segment an image
        same = np.flatnonzero(labels == label)
        map_[np.isin(map_, same)] = same[0] if len(same) else -1
    found, names = np.roll(map_, int(rng.integers(0, 3)), 1), labels.copy()
    flat = rng.random(map_.shape) < noise
    found = np.where(flat, np.roll(found, 9, 0), found)
    for place in rng.integers(0, 9, 2):
        if names[place] < 2:
            names[place] = 1 - names[place]
    map_[rng.random(map_.shape) < 0.1] = NOWHERE
    return Segments(map_.astype(np.int16), labels, np.zeros(9, bool)), found, names


def theirs(map_, labels):
    """[1, H, W, 2] of class and instance; 99 is void, and stuff has no instances."""
    classes = np.append(labels, 99)[map_]
    return torch.from_numpy(np.stack([classes, np.where(classes < 2, map_, 0)], -1))[None]


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.5])
def test_it_is_torchmetrics(noise):
    rng = np.random.default_rng(0)
    metric = Theirs(things={0, 1}, stuffs={2, 3}, allow_unknown_preds_category=True, return_per_class=True,
                    return_sq_and_rq=True)  # fmt: skip
    ours = PanopticQuality(THINGS)
    for _ in range(12):
        truth, found, names = scene(rng, noise)
        ours.add(truth, found, names)
        metric.update(theirs(found, names), theirs(truth.map.astype(np.int64), truth.labels))
    wanted = metric.compute().double().numpy()
    with np.errstate(invalid="ignore"):
        segmented = ours.overlap / np.maximum(ours.matched, 1)
        recognised = ours.matched / (ours.matched + 0.5 * ours.wrong + 0.5 * ours.missed)
    np.testing.assert_allclose(np.stack([segmented * recognised, segmented, recognised], 1), wanted, atol=1e-6)
    scores = ours.scores()
    assert scores["PQ"] == pytest.approx(100 * wanted[:, 0].mean(), abs=1e-4)
    assert scores["PQ_things"] == pytest.approx(100 * wanted[:2, 0].mean(), abs=1e-4)
    assert scores["PQ_stuff"] == pytest.approx(100 * wanted[2:, 0].mean(), abs=1e-4)
    assert 0 < scores["PQ"] < 100


def test_a_crowd_is_neither_missed_nor_wrong_to_find():
    map_ = np.zeros((4, 8), np.int16)
    map_[:, 4:] = 1
    truth = Segments(map_, np.array([0, 1]), np.array([False, True]))
    for label, wrong in ((1, 0), (0, 1)):  # inside the crowd of class 1
        quality = PanopticQuality(THINGS)
        found = map_.astype(np.int64)
        quality.add(truth, found, np.array([0, label]))
        assert quality.missed.sum() == 0
        assert quality.wrong.sum() == wrong
        assert quality.matched.tolist() == [1, 0, 0, 0]


def test_nothing_found_is_missed_and_what_is_hidden_is_not():
    truth = Segments(np.zeros((4, 4), np.int16), np.array([2, 1]), np.zeros(2, bool))  # the second has no pixel
    quality = PanopticQuality(THINGS)
    quality.add(truth, np.full((4, 4), NOWHERE), np.empty(0, np.int64))
    assert quality.missed.tolist() == [0, 0, 1, 0]
    assert quality.scores()["PQ"] == 0.0
    assert np.isnan(PanopticQuality(THINGS).scores()["PQ"])
