"""The bar chart of ``ssl-vit bench`` shows where the time goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
from matplotlib.figure import Figure

from ssl_vit.drawing import ACCENT, INK, SECOND, STYLE
from ssl_vit.files import write_atomically

Parts = dict[str, float]  # milliseconds an image


def draw(reading: Parts, step: Parts, title: str, path: Path) -> None:
    """Write a PNG with a bar for each part, of reading in one colour, of the training step in another."""
    with mpl.rc_context(cast(Any, STYLE)):
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for parts, colour, name in ((reading, SECOND, "reading, one process"), (step, ACCENT, "training step")):
            bars = axes.barh(list(parts), list(parts.values()), color=colour, label=name)
            axes.bar_label(bars, fmt=" %.2f", color=INK)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set(title=title, xlabel="milliseconds an image")
        axes.legend(frameon=False, loc="lower right")
        write_atomically(path, lambda staged: figure.savefig(staged, dpi=120, format="png"))
