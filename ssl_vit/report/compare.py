"""``ssl-vit compare`` draws this figure."""

from __future__ import annotations

from typing import Any, cast

import matplotlib as mpl
from matplotlib.figure import Figure

from ssl_vit.drawing import ACCENT, FAINT, INK, SECOND, STYLE
from ssl_vit.eval.compare import Comparison


def figure(found: Comparison) -> Figure:
    """Draw top-1 with its interval on the left, the difference from the first run with its interval on the right."""
    entries = found.entries
    rows = range(len(entries))
    with mpl.rc_context(cast(Any, STYLE)):
        drawn = Figure(figsize=(11, 1.6 + 0.45 * len(entries)), layout="constrained")
        left, right = drawn.subplots(1, 2, sharey=True)
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
    return drawn
