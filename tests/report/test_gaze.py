"""What is drawn is what the queries look at, where they look."""

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_vit.detectors.gaze import gaze, surest
from ssl_vit.detectors.picture_gaze import QUERIES, draw_gaze, gaze_figure
from tests.detectors.test_detectors import small

COLOURS = ((0.4, 0.5, 0.6), (0.3, 0.25, 0.2))


@pytest.mark.parametrize("kind", ["detr", "deformable"])
def test_dots_and_maps_lie_where_the_query_looks(kind):
    detector = small(kind).eval()
    images = torch.randn(2, 3, 96, 96)
    figure = gaze_figure(detector, images, np.zeros((2, 96, 96, 3), np.uint8))
    assert len(figure.axes) == 2 * QUERIES
    seen = gaze(detector, images)
    query = surest(seen.predictions, detector.focal, QUERIES)[1, 2]
    axes = figure.axes[QUERIES + 2]
    if kind == "detr":
        drawn = axes.images[1]
        np.testing.assert_allclose(drawn.get_array(), seen.weights[1, query].view(3, 3), rtol=1e-5)
        assert drawn.get_extent() == [-0.5, 95.5, 95.5, -0.5]
    else:
        np.testing.assert_allclose(axes.collections[0].get_offsets(), 96 * seen.points[1, query] - 0.5, rtol=1e-4)
    cx, cy, width, height = (96 * seen.predictions.boxes[1, query]).tolist()
    frame = axes.patches[0]
    np.testing.assert_allclose(frame.get_xy(), (cx - width / 2, cy - height / 2), rtol=1e-4)
    np.testing.assert_allclose((frame.get_width(), frame.get_height()), (width, height), rtol=1e-4)


def test_the_picture_is_written_over_the_image(tmp_path):
    bright = (torch.ones(1, 3, 64, 64) - torch.tensor(COLOURS[0]).view(3, 1, 1)) / torch.tensor(COLOURS[1]).view(
        3, 1, 1
    )
    draw_gaze(small("deformable").train(), bright, COLOURS, tmp_path / "queries.png")
    with Image.open(tmp_path / "queries.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    red = (pixels[:, 0].astype(int) - pixels[:, 1]) > 50
    assert red.sum() > 20  # dots
    assert (pixels == 255).all(1).mean() > 0.5
