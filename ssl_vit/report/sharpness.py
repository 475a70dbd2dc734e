"""The picture of ``ssl-vit eval sharpness`` shows the loss around the last weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from ssl_vit.drawing import ACCENT, INK, SECOND, STYLE


def figure(result: Mapping[str, Any]) -> Figure:
    """Draw contours of the loss over two random directions, and beside them the loss along each."""
    scores, surface = result["sharpness"], np.array(result["surface"])
    along = scores["along"]
    with mpl.rc_context(cast(Any, STYLE)):
        drawn = Figure(figsize=(11, 4.8), layout="constrained")
        title = f"Loss {scores['loss']:.4g}, largest eigenvalue of its Hessian {scores['eigenvalue']:.4g}"
        drawn.suptitle(f"{title}: {result['protocol']['encoder']}", color=INK)
        map_, lines = drawn.subplots(1, 2)
        finite = np.where(np.isfinite(surface), surface, np.nan)
        levels = map_.contour(along, along, finite, levels=14, cmap="viridis")
        map_.clabel(levels, fontsize=7, fmt="%.3g")
        map_.plot(0, 0, color=ACCENT, marker="o")
        map_.set(title="Loss over two directions", xlabel="first", ylabel="second", aspect="equal")
        lines.plot(along, scores["loss_first"], color=INK, marker="o", markersize=3, label="first")
        lines.plot(along, scores["loss_second"], color=SECOND, marker="o", markersize=3, label="second")
        lines.axvline(0, color=ACCENT, linewidth=1)
        lines.legend(frameon=False)
        lines.set(title="Loss along each", xlabel="1 = as far as the weights are from 0")
    return drawn
