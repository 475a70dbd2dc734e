"""``ssl-vit compare`` draws this figure."""

from __future__ import annotations

from typing import Any, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssl_vit.drawing import ACCENT, FAINT, INK, SECOND, STYLE
from ssl_vit.eval.compare import Comparison


def figure(found: Comparison) -> Figure:
    """Draw top-1 with its interval on the left, the difference from the first run with its interval on the right.

    Where costs were measured, top-1 over the time of an image comes last.
    """
    entries = found.entries
    rows = range(len(entries))
    with mpl.rc_context(cast(Any, STYLE)):
        drawn = Figure(
            figsize=(11 + 5.5 * bool(found.costs), max(1.6 + 0.45 * len(entries), 4 * bool(found.costs))),
            layout="constrained",
        )
        axes = drawn.subplots(1, 3 if found.costs else 2)
        left, right = axes[:2]
        right.sharey(left)
        right.tick_params(labelleft=False)
        for row, entry in zip(rows, entries, strict=True):
            left.plot((entry.low, entry.high), (row, row), color=SECOND, linewidth=2)
            left.plot(entry.top1, row, "o", color=SECOND)
            left.annotate(f"{entry.top1:.1f}", (entry.top1, row), (0, 6), textcoords="offset points", ha="center")
            if entry.difference is None or entry.p is None:
                continue
            colour = ACCENT if entry.p < 0.05 else FAINT
            right.plot((entry.difference_low, entry.difference_high), (row, row), color=colour, linewidth=2)
            right.plot(entry.difference, row, "o", color=colour)
            words = f"{entry.difference:+.1f}, p {entry.p:.2g}"
            right.annotate(words, (entry.difference, row), (0, 6), textcoords="offset points", ha="center")
        right.axvline(0, color=INK, linewidth=0.8)
        left.set_yticks(rows, [entry.run for entry in entries])
        left.set_ylim(len(entries) - 0.5, -0.6)
        left.set(title=f"{found.kind} top-1, %, 95 % intervals", xlabel=f"{found.images} images")
        right.set(title="Against the first (red: p < 0.05)", xlabel="points")
        if found.costs:
            _draw_costs(axes[2], found)
    return drawn


def _draw_costs(axes: Axes, found: Comparison) -> None:
    """Draw top-1 with its interval over the milliseconds of an image, in batches of 32."""
    for entry, cost in zip(found.entries, found.costs, strict=True):
        ms = cost.ms["32"]
        axes.plot((ms, ms), (entry.low, entry.high), color=SECOND, linewidth=2)
        axes.plot(ms, entry.top1, "o", color=SECOND)
        words = f"{entry.run}: {cost.parameters / 1e6:.1f} M"
        axes.annotate(words, (ms, entry.top1), (5, 5), textcoords="offset points", fontsize=8)
    axes.set(title="Accuracy against time", xlabel="milliseconds an image, batches of 32", ylabel="top-1, %")
    axes.set_xlim(left=0)
    axes.margins(x=0.3)
