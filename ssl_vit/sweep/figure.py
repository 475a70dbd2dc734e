"""``OUT/sweep.png``: the score of each line over the run, and how the error falls with scale where that was asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssl_vit.drawing import ACCENT, FAINT, INK, STYLE
from ssl_vit.report.figures import save_figure
from ssl_vit.sweep.fit import FEWEST, fitted, frontier, scales
from ssl_vit.sweep.plan import SweepPlan
from ssl_vit.sweep.result import Result

_MOST = 10  # lines that have a colour and a name; the others are faint
_TITLES = {"knn": "k-NN top-1, %", "rank": "effective rank of the features"}
_SCALES = {"images": "images seen", "parameters": "parameters", "compute": "1e9 multiply-adds, forward, of all images"}


def draw(plan: SweepPlan, result: Result, out: Path) -> None:
    """Write the picture of a sweep."""
    over = plan.options.fit
    points = scales(result.cells, out, over) if over else []
    save_figure(figure(result, points, _SCALES.get(over or "", "")), out / "sweep.png")


def figure(result: Result, points: Sequence[tuple[float, float]] = (), scale: str = "") -> Figure:
    """Draw the curves; points: (scale, error in percent) of cells, for a fitted line beside them."""
    with mpl.rc_context(cast(Any, STYLE)):
        drawn = Figure(figsize=(9 + 6 * bool(points), 4.8), layout="constrained")
        axes = drawn.subplots(1, 2 if points else 1, squeeze=False)[0]
        _curves(axes[0], result)
        if points:
            _law(axes[1], points, scale)
    return drawn


def _curves(axes: Axes, result: Result) -> None:
    for place, line in reversed(list(enumerate(result.lines))):
        percents = [int(percent) for percent in line.by_percent]
        named = place < _MOST
        words = ", ".join(f"{key.rpartition('.')[2]} {_short(value)}" for key, value in line.settings.items())
        axes.plot(
            percents,
            list(line.by_percent.values()),
            color=f"C{place}" if named else FAINT,
            marker="o",
            markersize=3,
            label=f"{line.mean:.1f}  {words or 'all cells'}" if named else None,
            zorder=2 + named,
        )
    axes.set(xlabel="share of the run, %", title=_TITLES[result.score], xlim=(0, 102))
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _law(axes: Axes, points: Sequence[tuple[float, float]], scale: str) -> None:
    x, error = (list(column) for column in zip(*points, strict=True))
    axes.loglog(x, error, "o", color=FAINT, label="cells")
    best = frontier(x, error)
    axes.loglog(*zip(*best, strict=True), "o", color=INK, label="best so far")
    if (law := fitted(x, error)) is not None:
        places = np.geomspace(min(x), 4 * max(x), 100)
        axes.loglog(places, law(places), color=ACCENT, label=str(law))
        if law.floor > 0:
            axes.axhline(law.floor, color=FAINT, linewidth=0.8, linestyle="--")
    else:
        axes.plot([], [], " ", label=f"no fit: fewer than {FEWEST} sizes that better the ones below")
    axes.set(xlabel=scale, title="Error (100 - k-NN top-1), %")
    axes.legend(frameon=False, fontsize=8)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
