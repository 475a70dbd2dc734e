"""Scores without labels against results known by hand."""

import numpy as np
import pytest

from ssl_vit.eval.api import evaluate
from ssl_vit.eval.labelfree import alignment, cropped, lidar, rank_me, shared_neighbours, uniformity, zoomed


def test_effective_rank_of_known_matrices():
    rng = np.random.default_rng(0)
    orthogonal = np.linalg.qr(rng.normal(size=(200, 40)))[0]
    assert rank_me(orthogonal) == pytest.approx(40, rel=1e-3)  # 40 equal singular values
    assert rank_me(orthogonal[:, :5] @ rng.normal(size=(5, 5)) @ np.eye(5, 40)) < 5.01
    assert rank_me(np.ones((50, 8))) == pytest.approx(1, abs=1e-3)
    assert rank_me(rng.normal(size=(2048, 384)).astype(np.float32)) == pytest.approx(374.6, abs=1)


def test_lidar_counts_the_directions_that_tell_images_apart():
    """20 directions with the same spread between images; where views differ as much in all, the rest are noise."""
    rng = np.random.default_rng(0)
    means = np.zeros((5000, 60))
    means[:, :20] = 30 * rng.normal(size=(5000, 20))
    views = (means + rng.normal(size=(6, 5000, 60))).astype(np.float32)
    assert lidar(views) == pytest.approx(20, rel=0.05)
    assert lidar(views[..., :20] * np.float32(1e3)) == pytest.approx(20, rel=0.01)  # any scale
    assert lidar(np.ones((6, 50, 8), np.float32)) == 1
    collapsed = np.ones((6, 500, 60)) + 1e-3 * rng.normal(size=(500, 1)) * rng.normal(size=60)
    assert lidar(collapsed.astype(np.float32)) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("images", "dims"), [(80, 12), (9, 60)])  # more vectors than numbers in each, and fewer
def test_lidar_is_that_of_scipys_generalised_eigenvalues(images, dims):
    from scipy.linalg import eigh

    rng = np.random.default_rng(1)
    mix = rng.normal(size=(dims, dims))
    views = (rng.normal(size=(images, dims)) @ mix + 0.3 * rng.normal(size=(4, images, dims))).astype(np.float32)
    means = views.mean(0, dtype=np.float64)
    within = np.mean([np.cov(views[:, i], rowvar=False) for i in range(images)], 0) + 1e-4 * np.eye(dims)
    told = eigh(np.cov(means, rowvar=False), within, eigvals_only=True)
    told = told[told > 1e-8 * told.max()]
    share = told / told.sum()
    assert lidar(views) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)


def test_crops_are_another_for_each_view_and_the_same_for_a_seed():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    first = cropped(0, 0, image, 3)
    np.testing.assert_array_equal(first, cropped(0, 0, image, 3))
    assert first.shape == image.shape
    assert all((first != other).mean() > 0.5 for other in (cropped(0, 1, image, 3), cropped(0, 0, image, 4)))


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
