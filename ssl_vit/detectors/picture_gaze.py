"""The figure shows what a detector's queries look at: the surest few of them on some images, each with its box."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_convert

from ssl_vit.backbones.backbone import Colour
from ssl_vit.detectors.gaze import gaze, surest
from ssl_vit.detectors.networks import Pretrainable
from ssl_vit.detectors.picture_regions import shown
from ssl_vit.drawing import ACCENT, SECOND, STYLE, Image
from ssl_vit.files import write_atomically

QUERIES = 4  # of each image
_AREA = 60.0  # of the largest dot, in points squared


def draw_gaze(detector: Pretrainable, images: Tensor, colours: tuple[Colour, Colour], path: Path) -> None:
    """Write a PNG with a row for each of some images [B, 3, S, S], normalised by `colours` (mean, deviation).

    The detector is left in evaluation mode.
    """
    figure = gaze_figure(detector.eval(), images, shown(images, colours))
    write_atomically(path, lambda staged: figure.savefig(staged, format="png"))


def gaze_figure(detector: Pretrainable, images: Tensor, pixels: NDArray[np.uint8]) -> Figure:
    """Draw a map where a query looks at every cell (DETR), dots where it samples points (Deformable DETR).

    images: [B, 3, S, S] normalised; pixels: [B, S, S, 3], the same as they are shown.
    """
    seen = gaze(detector, images)
    queries = surest(seen.predictions, detector.focal, QUERIES)
    columns = queries.shape[1]
    with mpl.rc_context(cast(Any, STYLE)):
        figure = Figure(figsize=(2.6 * columns, 2.6 * len(images) + 0.5), layout="constrained")
        figure.suptitle("What the surest queries look at, each with its box")
        for place, (image, query) in enumerate((i, q) for i in range(len(images)) for q in queries[i].tolist()):
            axes = figure.add_subplot(len(images), columns, place + 1)
            axes.axis("off")
            axes.set_title(f"query {query}", fontsize=8)
            _draw(axes, pixels[image], seen.points[image, query], seen.weights[image, query], seen.grid)
            _frame(axes, pixels[image], seen.predictions.boxes[image, query])
    return figure


def _draw(axes: Axes, image: Image, points: Tensor, weights: Tensor, grid: tuple[int, int] | None) -> None:
    height, width = image.shape[:2]
    axes.imshow(image)
    if grid is not None:
        over = (-0.5, width - 0.5, height - 0.5, -0.5)
        axes.imshow(weights.reshape(grid).cpu(), extent=over, alpha=0.6, cmap="magma", interpolation="bilinear")
        return
    x, y = (points.cpu() * torch.tensor([width, height]) - 0.5).unbind(-1)
    axes.scatter(x, y, s=_AREA * weights.cpu() / weights.max().cpu(), color=ACCENT, alpha=0.5, linewidths=0)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _frame(axes: Axes, image: Image, box: Tensor) -> None:
    height, width = image.shape[:2]
    left, top, right, bottom = (box_convert(box.cpu(), "cxcywh", "xyxy") * torch.tensor([width, height] * 2)).tolist()
    frame = mpl.patches.Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=SECOND, linewidth=2)
    axes.add_patch(frame)
