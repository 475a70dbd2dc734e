"""The picture of ``ssl-vit eval budget`` shows accuracy over what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssl_vit.drawing import ACCENT, INK, SECOND, STYLE


def figure(result: Mapping[str, Any]) -> Figure:
    """Draw top-1 over multiply-adds on the left, over measured milliseconds on the right."""
    points = result["budget"]["points"]
    with mpl.rc_context(cast(Any, STYLE)):
        drawn = Figure(figsize=(11, 4.5), layout="constrained")
        drawn.suptitle(f"What accuracy costs: {result['protocol']['encoder']}", color=INK)
        left, right = drawn.subplots(1, 2, sharey=True)
        draw(left, [point["gmacs"] for point in points], points, INK, "")
        for point in points:  # below the line, which rises
            place = point["gmacs"], point["top1"]
            left.annotate(said(point), place, xytext=(5, -11), textcoords="offset points", fontsize=8)
        for batch, colour in zip(points[0]["ms"], (ACCENT, SECOND), strict=False):
            draw(right, [point["ms"][batch] for point in points], points, colour, f"batches of {batch}")
        left.set(title="Multiply-adds", xlabel="1e9 multiply-adds an image, mean", ylabel="top-1, %")
        right.set(title="Time on this machine", xlabel="milliseconds an image", xlim=(0, None))
        left.margins(x=0.12, y=0.12)
        right.legend(frameon=False)
    return drawn


def draw(axes: Axes, cost: Sequence[float], points: Sequence[Mapping[str, Any]], colour: str, label: str) -> None:
    """Draw a line through the points, in their order."""
    axes.plot(cost, [point["top1"] for point in points], color=colour, marker="o", markersize=4, label=label)


def said(point: Mapping[str, Any]) -> str:
    """What stands beside a point.

    >>> said({"keep": 0.7}), said({"exits": [25.0, 50.0, 25.0]}), said({})
    ('keep 0.7', '25/50/25 %', '')
    """
    if "keep" in point:
        return f"keep {point['keep']:g}"
    return "/".join(f"{share:.0f}" for share in point["exits"]) + " %" if "exits" in point else ""
