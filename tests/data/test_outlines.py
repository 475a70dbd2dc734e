"""Run lengths against faster-coco-eval's, and masks against outlines drawn from polygons."""

from __future__ import annotations

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco

from ssl_vit.data.outlines import drawn, run_lengths, runs


@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_run_lengths_are_cocos(share):
    rng = np.random.default_rng(0)
    for _ in range(60):
        mask = rng.random(rng.integers(2, 90, 2)) < share
        mask[0, 1] = True
        encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        size = (int(mask.shape[0]), int(mask.shape[1]))
        found = runs({"size": list(size), "counts": encoded["counts"].decode()}, size)
        assert (found.mask() == mask).all()
        plain = run_lengths(mask)
        assert plain.lengths.tolist() == found.lengths.tolist()
        assert (runs({"size": list(size), "counts": plain.lengths.tolist()}, size).mask() == mask).all()


def test_long_runs_are_cocos():
    mask = np.zeros((3000, 2000), bool)
    mask[100:2900, 50:1900], mask[500:600] = True, False
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    found = runs({"size": [3000, 2000], "counts": encoded["counts"].decode()}, (3000, 2000))
    assert (found.mask() == mask).all()


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("scale", [(0.4, 0.5), (1.7, 1.6)])
def test_a_mask_is_drawn_where_its_polygon_is(flipped, scale):
    mask = np.zeros((80, 100), bool)
    mask[20:60, 10:40] = True
    ring = np.array([[10, 20], [40, 20], [40, 60], [10, 60]], np.float32)
    found, expected = (drawn(each, 96, (80, 100), scale, (7, 3), flipped) for each in (run_lengths(mask), (ring,)))
    assert (found & expected).sum() > 0.9 * found.sum() > 40
    for axis in (0, 1):  # Pillow's polygons have the pixels of their edges
        ends = [np.flatnonzero(picture.any(axis))[[0, -1]] for picture in (found, expected)]
        assert np.abs(ends[0] - ends[1]).max() <= 1


def test_nothing_is_drawn_of_nothing():
    assert not drawn(None, 8, (4, 4), (1, 1), (0, 0), False).any()
