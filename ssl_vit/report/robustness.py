"""The heat map of ``ssl-vit eval robustness`` shows what each change of the images costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssl_vit.drawing import ACCENT, INK, SECOND, STYLE

_CURVES = (
    ("hidden", "Patches hidden, %", SECOND),
    ("shuffled", "Tiles a side, shuffled", INK),
    ("fgsm", "FGSM, 255ths", ACCENT),
    ("pgd", "PGD, 255ths", ACCENT),
)


def figure(result: Mapping[str, Any]) -> Figure:
    """Draw top-1 of every corruption and severity, coloured by what it loses, and everything else on the right."""
    scores = result["robustness"]
    curves = [(scores[key], title, colour) for key, title, colour in _CURVES if scores[key]]
    with mpl.rc_context(cast(Any, STYLE)):
        drawn = Figure(figsize=(11, 6.5), layout="constrained")
        drawn.suptitle(f"Top-1, %: {result['protocol']['encoder']}, clean {scores['clean']:.1f}", color=INK)
        halves = drawn.add_gridspec(1, 2, width_ratios=(1.5, 1))
        if scores["corruptions"]:
            heat_map(drawn.add_subplot(halves[0]), scores["corruptions"], scores["clean"])
        places = halves[1].subgridspec(max(1, len(curves)), 1)
        for place, (values, title, colour) in enumerate(curves):
            draw_curve(drawn.add_subplot(places[place]), values, title, colour, scores["clean"])
    return drawn


def heat_map(axes: Axes, corruptions: Mapping[str, Mapping[str, float]], clean: float) -> None:
    """Draw a row a corruption and a column a severity."""
    table = np.array([list(levels.values()) for levels in corruptions.values()])
    axes.imshow(clean - table, cmap="YlOrRd", vmin=0, vmax=max(clean, 1), aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        dark = clean - value > 0.6 * clean
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", color="white" if dark else INK, fontsize=9)
    axes.set_yticks(range(len(corruptions)), [name.replace("_", " ") for name in corruptions])
    axes.set_xticks(range(table.shape[1]), list(next(iter(corruptions.values()))))
    axes.set(title="Corruptions, darker: more is lost", xlabel="severity")
    axes.tick_params(length=0)


def draw_curve(axes: Axes, values: Mapping[str, float], title: str, colour: str, clean: float) -> None:
    """Draw top-1 over strength, from the clean images on."""
    names, top1 = ["clean", *values], [clean, *values.values()]
    axes.plot(names, top1, color=colour, marker="o", markersize=4)
    for place, value in enumerate(top1):
        axes.annotate(
            f"{value:.1f}", (place, value), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=8
        )
    axes.set(title=title, ylim=(0, 118), yticks=(0, 50, 100))
