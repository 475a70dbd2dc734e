"""Pictures of a run are what a person looks at before reading a number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ssl_vit.data.sources import Source
from ssl_vit.drawing import ACCENT, FAINT, INK, SECOND, STYLE, Image
from ssl_vit.eval.features import FeatureSet
from ssl_vit.files import write_atomically
from ssl_vit.training.looks.metrics import read_rows


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's metrics.jsonl."""
    return read_rows(run / "metrics.jsonl")


def series(rows: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Return steps and values of the lines that have a key.

    >>> series([{"step": 0, "loss": 2.0}, {"step": 0, "rank": 3.0}, {"step": 1, "loss": 1.0}], "loss")
    ([0, 1], [2.0, 1.0])
    """
    found = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return [step for step, _ in found], [value for _, value in found]


def smooth(values: Sequence[float], width: int) -> NDArray[np.float64]:
    """Compute a running mean over ``width`` values, shorter at the ends, as long as the input."""
    kernel = np.ones(max(1, min(width, len(values))))
    weights = np.convolve(np.ones(len(values)), kernel, mode="same")
    smoothed: NDArray[np.float64] = np.convolve(np.asarray(values), kernel, mode="same") / weights
    return smoothed


def draw_loss(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Draw the loss over steps, with the level at which nothing is learnt."""
    steps, loss = series(rows, "loss")
    health = [row for row in rows if "health" in row]
    axes.plot(steps, loss, color=FAINT, linewidth=0.6)
    axes.plot(steps, smooth(loss, len(loss) // 50 + 1), color=INK)
    if health and health[0].get("uniform_loss") is not None:
        axes.axhline(health[0]["uniform_loss"], color=ACCENT, linestyle=":", linewidth=1)
        axes.annotate("no information", (steps[-1], health[0]["uniform_loss"]), ha="right", va="bottom", color=ACCENT)
    axes.set(title="Loss", xlabel="step")


def draw_rank(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Draw the effective rank over steps."""
    axes.plot(*series(rows, "rank"), color=SECOND)
    axes.set(title="Dimensions in use (RankMe)", xlabel="step")
    axes.set_ylim(bottom=0)


def draw_knn(axes: Axes, rows: Sequence[dict[str, Any]], k: int, pixels: float | None = None) -> None:
    """Draw k-NN top-1 over steps, beside that of raw pixels where it is known."""
    steps, score = series(rows, f"knn/{k}")
    axes.plot(steps, score, color=ACCENT, marker="o", markersize=3)
    for x, y in ((steps[0], score[0]), (steps[-1], score[-1])):
        axes.annotate(f"{y:.1f}", (x, y), xytext=(0, 6), textcoords="offset points", ha="center", color=ACCENT)
    if pixels is not None:
        axes.axhline(pixels, color=FAINT, linestyle="--", linewidth=1)
        axes.annotate(f"raw pixels {pixels:.1f}", (steps[-1], pixels), ha="right", va="bottom", color=INK)
    axes.set(title=f"k-NN top-1, % (k = {k})", xlabel="step", ylim=(0, 100))


def draw_neighbours(axes: Axes, title: str, queries: list[Image], found: list[list[tuple[Image, bool]]]) -> None:
    """Draw a row a query: the image, then its nearest neighbours, framed by whether the class is the query's."""
    side, gap = queries[0].shape[0], 6
    axes.set(title=title, xlim=(0, (len(found[0]) + 1) * (side + gap) + 3 * gap), ylim=(len(queries) * (side + gap), 0))
    axes.set_aspect("equal")
    axes.axis("off")
    for row, (query, neighbours) in enumerate(zip(queries, found, strict=True)):
        top = row * (side + gap)
        axes.imshow(query, extent=(0, side, top + side, top), cmap="gray")
        for column, (image, right) in enumerate(neighbours, start=1):
            left = column * (side + gap) + 2 * gap
            axes.imshow(image, extent=(left, left + side, top + side, top), cmap="gray")
            colour = SECOND if right else ACCENT
            axes.add_patch(mpl.patches.Rectangle((left, top), side, side, fill=False, edgecolor=colour, linewidth=1.6))


def demo_figure(
    run: Path,
    pixels: float,
    before: tuple[FeatureSet, FeatureSet],
    after: tuple[FeatureSet, FeatureSet],
    sources: tuple[Source, Source],
    k: int,
) -> Figure:
    """Draw loss, rank and k-NN over time, and below them the nearest neighbours of some images before and after."""
    rows = read_metrics(run)
    queries = [int(np.flatnonzero(sources[1].labels == c)[0]) for c in range(min(8, len(sources[1].classes)))]
    with mpl.rc_context(cast(Any, STYLE)):
        figure = Figure(figsize=(12, 8.5), layout="constrained")
        grid = figure.add_gridspec(2, 6, height_ratios=(1, 1.8))
        draw_loss(figure.add_subplot(grid[0, :2]), rows)
        draw_rank(figure.add_subplot(grid[0, 2:4]), rows)
        draw_knn(figure.add_subplot(grid[0, 4:]), rows, k, pixels)
        for place, title, features in ((grid[1, :3], "before", before), (grid[1, 3:], "after pretraining", after)):
            images, found = neighbours_figure(*features, sources, queries, count=7)
            draw_neighbours(figure.add_subplot(place), f"Nearest neighbours, {title}", images, found)
    return figure


def neighbours_figure(
    train: FeatureSet, val: FeatureSet, sources: tuple[Source, Source], queries: Sequence[int], count: int
) -> tuple[list[Image], list[list[tuple[Image, bool]]]]:
    """Return the queries' images, and for each the ``count`` nearest training images, and if their class is its own."""
    bank = train.features / np.linalg.norm(train.features, axis=1, keepdims=True)
    found = []
    for query in queries:
        order = np.argsort(-(bank @ val.features[query]), kind="stable")[:count]
        found.append([(sources[0].read(int(i)), bool(train.labels[i] == val.labels[query])) for i in order])
    return [sources[1].read(query) for query in queries], found


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, whole or not at all."""
    write_atomically(path, lambda staged: figure.savefig(staged, format="png", dpi=150))
