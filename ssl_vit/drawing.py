"""How pictures look, in every room: colours, style, and images with boxes on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

INK, ACCENT, SECOND, FAINT = "#1b2a41", "#d1495b", "#00798c", "#b8bfc9"
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
}

Image = NDArray[np.uint8]
"""Pixels [H, W, 3]."""

COLUMNS = 4


class Boxed(NamedTuple):
    """An image has its true boxes and those that were found; corners are pixels (left, top, right, bottom)."""

    image: Image  # [H, W, 3]
    true: NDArray[np.float32]  # [n, 4]
    true_names: Sequence[str]
    found: NDArray[np.float32]  # [m, 4]
    found_names: Sequence[str]  # with the score, where there is one: "cat 0.93"
    looks: Sequence[NDArray[np.float32]] = ()  # for each box found, [P, 3]: (x, y) it was found by, and its weight


def boxes_figure(images: Sequence[Boxed], title: str, through: str = "what is there") -> Figure:
    """Draw a grid of images: true boxes (or what `through` says) drawn through, found ones dashed, each named."""
    columns = min(COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    with mpl.rc_context(cast(Any, STYLE)):
        figure = Figure(figsize=(3.4 * columns, 3.4 * rows + 0.5), layout="constrained")
        figure.suptitle(f"{title}: {through} (drawn through), what was found (dashed)")
        for place in range(rows * columns):
            axes = figure.add_subplot(rows, columns, place + 1)
            axes.axis("off")
            if place < len(images):
                draw_boxes(axes, images[place])
    return figure


def draw_boxes(axes: Axes, boxed: Boxed) -> None:
    """One image of the grid."""
    axes.imshow(boxed.image)
    axes.set(autoscale_on=False)
    for index, places in enumerate(boxed.looks):
        x, y, weights = places.T
        axes.scatter(x, y, 60 * weights / weights.max(), color=f"C{index % 10}", alpha=0.6, linewidths=0)
    sides = ((boxed.true, boxed.true_names, SECOND, "-"), (boxed.found, boxed.found_names, ACCENT, "--"))
    for corners, names, colour, line in sides:
        for (left, top, right, bottom), name in zip(corners.tolist(), names, strict=True):
            frame = mpl.patches.Rectangle(
                (left, top), right - left, bottom - top, fill=False, edgecolor=colour, linestyle=line, linewidth=1.5
            )
            axes.add_patch(frame)
            below = line == "--"  # so that the two names of one object don't cover each other
            axes.text(
                left,
                bottom if below else top,
                name,
                color="white",
                fontsize=7,
                va="top" if below else "bottom",
                bbox={"facecolor": colour, "edgecolor": "none", "pad": 1},
            )
