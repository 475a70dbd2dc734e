"""Pictures show the classes that a segmenter found beside those that are there; of frozen heads, their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from ssl_vit.data.decode import decode
from ssl_vit.data.values import Pixels
from ssl_vit.drawing import FAINT, SECOND, STYLE

LISTED = 24  # classes in the legend


def figure(result: Mapping[str, Any]) -> Figure:
    """Draw images of val, what is there, and what was found from the weights, for ``ssl-vit eval segmentation``.

    Colours are classes, the same in both; white counts for nothing. Frozen heads have no pictures but bars.
    """
    with mpl.rc_context(cast(Any, STYLE)):
        return _maps(result) if result.get("examples") else _bars(result["segmentation"])


def _maps(result: Mapping[str, Any]) -> Figure:
    examples, protocol = result["examples"], result["protocol"]
    names, colours = protocol["classes_by_name"], _colours(len(protocol["classes_by_name"]))
    columns = 2 if len(examples) > 4 else 1
    rows = -(-len(examples) // columns)
    figure = Figure(figsize=(6.6 * columns, 2.3 * rows + 1.2), layout="constrained")
    figure.suptitle(f"{protocol['head']}: the image, what is there, what was found")
    seen = set[int]()
    for place, example in enumerate(examples):
        image = decode(example["file"], Pixels.of(protocol.get("pixels")))
        maps = [_classes(example[kind]) for kind in ("true", "found")]
        seen.update(value for each in maps for value in np.unique(each).tolist() if value >= 0)
        pictures: list[NDArray[Any]] = [image, *(colours[each] for each in maps)]
        for column, picture in enumerate(pictures):
            axes = figure.add_subplot(rows, 3 * columns, 3 * place + column + 1)
            axes.imshow(picture, interpolation="nearest")
            axes.axis("off")
    shown = sorted(seen)[:LISTED]
    patches = [Patch(facecolor=colours[value].tolist(), label=names[value]) for value in shown]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(8, len(shown)), frameon=False, fontsize=8)
    return figure


def _bars(scores: Mapping[str, Mapping[str, float]]) -> Figure:
    """Of frozen heads: mIoU and pixel accuracy, in percent."""
    figure = Figure(figsize=(4.5, 3.2), layout="constrained")
    axes: Axes = figure.add_subplot()
    heads = list(scores)
    for shift, (metric, colour) in enumerate((("mIoU", SECOND), ("accuracy", FAINT))):
        values = [scores[head][metric] for head in heads]
        bars = axes.bar(np.arange(len(heads)) + 0.38 * (shift - 0.5), values, 0.36, color=colour, label=metric)
        axes.bar_label(bars, fmt="%.1f")
    axes.set(xticks=range(len(heads)), xticklabels=heads, ylim=(0, 105), ylabel="percent", title="Frozen patches")
    axes.legend(frameon=False)
    return figure


def _classes(kept: Mapping[str, Sequence[Any]]) -> NDArray[np.int64]:
    """The classes [h, w] of a small picture, from run lengths."""
    values, lengths = np.array(kept["runs"], np.int64).T
    return np.repeat(values, lengths).reshape(kept["size"])


def _colours(count: int) -> NDArray[np.float64]:
    """A colour for each class [count + 1, 3], white last, for what doesn't count."""
    hues = (np.arange(count) * 0.618034) % 1.0
    value = 0.95 - 0.3 * (np.arange(count) % 3) / 2
    colours = mpl.colors.hsv_to_rgb(np.stack([hues, np.full(count, 0.65), value], 1))
    return np.concatenate([colours, np.ones((1, 3))])
