"""Regions become boxes: those first that stand out longest, none twice."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.ops import nms

from ssl_vit.proposals.prior import Boxes
from ssl_vit.proposals.regions import Grown

_MOST = 0.9  # of the image's area, above which a region is the ground of everything
_ALIKE = 0.7  # IoU above which a box is a copy of a better one
_LOOKED_AT = 8  # boxes to choose each from: all of an image's thousands would take longer than finding them


def best_boxes(grown: Grown, grid: tuple[int, int], least: int, count: int) -> Boxes:
    """Choose at most `count` boxes of regions of a grid of (rows, columns), as fractions of it, best first.

    A region ranks by what it costs to make it part of another one, which is high for what is large and unlike its
    surroundings. least: cells a side of a box.
    """
    rows, columns = grid
    wide_enough = (grown.boxes[:, 2:] - grown.boxes[:, :2] >= least).all(1)
    chosen = np.flatnonzero(wide_enough & (grown.sizes < _MOST * rows * columns))
    chosen = chosen[np.argsort(-grown.levels[chosen], kind="stable")][: _LOOKED_AT * count]
    boxes = grown.boxes[chosen] / np.array([columns, rows, columns, rows], np.float32)
    scores = torch.arange(len(boxes), 0, -1, dtype=torch.float32)
    kept: Boxes = boxes[nms(torch.from_numpy(boxes), scores, _ALIKE)[:count].numpy()]
    return kept
