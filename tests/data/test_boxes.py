"""Boxes in crops, against where a painted rectangle is seen in the crop; and on their way through the loader."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl_vit.data.batch import to_views
from ssl_vit.data.boxes import SMALLEST, boxes_in_crops
from ssl_vit.data.crops import make_views, sample_rng
from ssl_vit.data.loader import build_loader
from ssl_vit.data.params import PLACE, Column
from ssl_vit.data.plan import View, ViewPlan
from ssl_vit.data.sources import open_source
from tests.data.photo import save_photos

HEIGHT, WIDTH, SIDE = 120, 160, 96


def seen(crop: torch.Tensor) -> list[float] | None:
    """Left, top, right, bottom of what is brighter than half, as shares of the crop [3, S, S]."""
    rows, columns = ((crop[0] > 127).any(dim).nonzero()[:, 0] for dim in (1, 0))
    if not len(rows):
        return None
    return [float(v) / SIDE for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]


@pytest.mark.parametrize("seed", range(20))
def test_a_box_is_where_its_pixels_are(seed):
    rng = np.random.default_rng(seed)
    left, top = rng.integers(0, WIDTH - 40), rng.integers(0, HEIGHT - 40)
    right, bottom = left + rng.integers(8, 40), top + rng.integers(8, 40)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[top:bottom, left:right] = 255
    box = torch.tensor([[[left / WIDTH, top / HEIGHT, right / WIDTH, bottom / HEIGHT]]], dtype=torch.float32)
    view = View("image", 1, SIDE, scale=(0.2, 0.9), flip_p=0.5)
    (crop,), (params,) = make_views(image, ViewPlan((view,)), sample_rng(seed, 0, 0))
    found, expected = boxes_in_crops(box, params)[0, 0], seen(crop[0])
    if found.isnan().any():
        assert expected is None or min(expected[2] - expected[0], expected[3] - expected[1]) < SMALLEST + 2 / SIDE
    else:
        assert expected is not None
        assert found.tolist() == pytest.approx(expected, abs=1.5 / SIDE)


def test_most_boxes_are_seen_in_the_test_above_and_some_crops_are_mirrored():
    """So that it does not pass by comparing nothing."""
    view = View("image", 1, 8, scale=(0.2, 0.9), flip_p=0.5)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    rows = [make_views(image, ViewPlan((view,)), sample_rng(seed, 0, 0))[1][0][0] for seed in range(20)]
    assert 4 < sum(row[-1] for row in rows) < 16
    everything = boxes_in_crops(torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(20, 1, 4), torch.stack(rows))
    assert torch.equal(everything[:, 0], torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(20, 4))


def test_slivers_and_missing_rows_are_dropped():
    params = torch.zeros(1, len(Column))
    params[0, PLACE] = torch.tensor([0.5, 0.5, 1.0, 1.0, 0.0])
    least = 0.5 * SMALLEST
    boxes = [
        [0.2, 0.6, 0.5 + 1.01 * least, 0.8],
        [0.2, 0.6, 0.5 + 0.99 * least, 0.8],
        [0.1, 0.1, 0.4, 0.4],
        [np.nan] * 4,
    ]
    found = boxes_in_crops(torch.tensor([boxes], dtype=torch.float32), params)[0]
    assert found.isnan().all(1).tolist() == [False, True, True, True]
    assert found[0].tolist() == pytest.approx([0.0, 0.2, 1.01 * SMALLEST, 0.6], abs=1e-6)


def test_a_batch_carries_the_boxes_of_its_images(tmp_path):
    save_photos(tmp_path, 7)
    (tmp_path / "003.png").write_bytes(b"no image")  # what stands in its place brings its own boxes
    source = open_source(tmp_path)
    regions = [
        np.array([[0.0, 0.0, 1.0, (image + 1) / 10]] * (image % 3), np.float32).reshape(-1, 4) for image in range(7)
    ]
    plan = ViewPlan((View("image", 1, 16),), boxes=2)
    loader = build_loader(source, plan, batch_size=3, seed=0, total_steps=4, regions=regions, max_bad=0.5)
    for batch in loader:
        images, boxes = to_views(batch, (0.5,) * 3, (0.5,) * 3, "cpu")
        assert images.shape == (3, 3, 16, 16)
        assert boxes.shape == (3, 2, 4)
        for image, rows in zip(batch.index.tolist(), boxes, strict=True):
            assert image != 3
            assert rows.isnan().all(1).tolist() == [image % 3 < 1, image % 3 < 2]
            whole = rows[: image % 3]
            assert whole[:, 3].tolist() == pytest.approx([(image + 1) / 10] * (image % 3), abs=0.02)
