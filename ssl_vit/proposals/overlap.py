"""Boxes that say the same."""

from __future__ import annotations

import torch
from torchvision.ops import nms

from ssl_vit.proposals.prior import Boxes

_LOOKED_AT = 8  # boxes to choose each from: all of an image's thousands would take longer than finding them


def distinct(boxes: Boxes, alike: float, count: int) -> Boxes:
    """At most `count` of some boxes [n, 4], best first: those whose IoU with none before them is above `alike`."""
    boxes = boxes[: _LOOKED_AT * count]
    scores = torch.arange(len(boxes), 0, -1, dtype=torch.float32)
    kept: Boxes = boxes[nms(torch.from_numpy(boxes), scores, alike)[:count].numpy()]
    return kept
