"""Where the colours of true and of found boxes land in the rendered picture."""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from ssl_vit.report.detection import Boxed, boxes_figure
from ssl_vit.report.figures import ACCENT, SECOND


def _at(figure, axes, x, y):
    """The colour drawn at a pixel of an image."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())
    column, row = axes.transData.transform((x, y))
    patch = pixels[
        round(len(pixels) - row) - 2 : round(len(pixels) - row) + 3, round(column) - 2 : round(column) + 3, :3
    ]
    return patch.reshape(-1, 3) / 255


def test_boxes_are_drawn_where_they_are():
    image = np.full((100, 100, 3), 255, np.uint8)
    true, found = np.array([[20, 30, 60, 80]], np.float32), np.array([[70, 10, 90, 95]], np.float32)
    figure = boxes_figure([Boxed(image, true, ["cat"], found, ["dog 0.93"])] * 3, "val")
    axes = [a for a in figure.axes if a.images]
    assert len(axes) == 3
    assert {text.get_text() for text in axes[0].texts} == {"cat", "dog 0.93"}

    def near(colour, x, y):
        return np.abs(_at(figure, axes[1], x, y) - to_rgb(colour)).max(1).min() < 0.1

    assert near(SECOND, 60, 55)
    assert near(SECOND, 40, 80)
    assert not near(SECOND, 40, 55)
    assert any(near(ACCENT, 90, y) for y in range(20, 60, 2))  # dashed
    assert not any(near(ACCENT, 60, y) for y in range(20, 60, 2))
