"""Where the colours of true and of found boxes land in the rendered picture."""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from ssl_vit.drawing import Boxed, boxes_figure
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


def test_places_that_were_looked_at_are_dots():
    image, nothing = np.full((100, 100, 3), 255, np.uint8), np.empty((0, 4), np.float32)
    box, places = np.array([[70, 10, 90, 95]], np.float32), np.array([[30, 40, 0.5], [60, 80, 0.01]], np.float32)
    figure = boxes_figure([Boxed(image, nothing, [], box, ["dog"], [places])], "val")
    [axes] = figure.axes
    assert (_at(figure, axes, 30, 40) < 0.95).any()
    assert (_at(figure, axes, 60, 40) > 0.95).all()
    [dots] = axes.collections
    assert round(float(dots.get_sizes()[0] / dots.get_sizes()[1])) == 50
    assert axes.get_xlim() == (-0.5, 99.5)
