"""Scores without labels against results known by hand."""

import numpy as np
import pytest

from ssl_vit.eval.api import evaluate
from ssl_vit.eval.labelfree import alignment, rank, shared_neighbours, uniformity, zoomed


def test_effective_rank_of_known_matrices():
    rng = np.random.default_rng(0)
    orthogonal = np.linalg.qr(rng.normal(size=(200, 40)))[0]
    assert rank(orthogonal) == pytest.approx(40, rel=1e-3)  # 40 equal singular values
    assert rank(orthogonal[:, :5] @ rng.normal(size=(5, 5)) @ np.eye(5, 40)) < 5.01
    assert rank(np.ones((50, 8))) == pytest.approx(1, abs=1e-3)
    assert rank(rng.normal(size=(2048, 384)).astype(np.float32)) == pytest.approx(374.6, abs=1)


def test_alignment_and_uniformity_by_hand():
    axes = np.eye(4, dtype=np.float32)
    assert alignment(axes, 3 * axes) == 0
    assert alignment(axes, np.roll(axes, 1, axis=1)) == pytest.approx(2)  # right angles: |a - b|^2 = 2
    assert uniformity(axes, seed=0) == pytest.approx(-4)  # log exp(-2 * 2)
    assert uniformity(np.ones((6, 3), np.float32), seed=0) == pytest.approx(0)


def test_shared_neighbours_by_hand():
    features = np.random.default_rng(1).normal(size=(300, 20)).astype(np.float32)
    assert shared_neighbours(features, features, 10) == 100
    other = np.random.default_rng(2).normal(size=(300, 20)).astype(np.float32)
    assert shared_neighbours(features, other, 10) < 10  # by chance 10 of 299


def test_the_second_view_is_mirrored():
    image = np.zeros((20, 20, 3), np.uint8)
    image[:, :10] = 255
    view = zoomed(image, 0)
    assert view[:, -5:].min() == 255
    assert view[:, :5].max() == 0


def test_on_a_folder_without_labels(run, images):
    scores = evaluate("labelfree", run, data=images / "val" / "ash", k=3)["labelfree"]
    assert 1 < scores["rank"] < 15
    assert 0 < scores["alignment"] < 4
    assert scores["uniformity"] < 0
    assert 0 <= scores["shared_neighbours"] <= 100
