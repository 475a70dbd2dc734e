"""Boxes of an image follow it into its crops."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_vit.data.params import PLACE

SMALLEST = 1 / 32  # of the crop's side: what is left of a box, below which it is dropped


def boxes_in_crops(boxes: Tensor, params: Tensor) -> Tensor:
    """Cut boxes of B images [B, K, 4] to one crop of each, mirrored with it; nan stands where none is left.

    boxes: (left, top, right, bottom) as shares of the image's sides, rows of nan where an image has fewer than K;
    params: [B, P] of the crops, as `crops` draws them. The result has shares of the crop's sides.

    >>> from ssl_vit.data.params import UNCHANGED
    >>> params = torch.tensor([[*UNCHANGED, 0.5, 0.0, 1.0, 1.0, 1.0]])  # the right half, mirrored
    >>> boxes_in_crops(torch.tensor([[[0.5, 0.0, 0.75, 0.5], [0.0, 0.0, 0.4, 0.4]]]), params)
    tensor([[[0.5000, 0.0000, 1.0000, 0.5000],
             [   nan,    nan,    nan,    nan]]])
    """
    left, top, right, bottom, flipped = params[:, None, PLACE].unbind(-1)
    width, height = right - left, bottom - top
    x = ((boxes[..., 0::2] - left[..., None]) / width[..., None]).clamp(0, 1)
    y = ((boxes[..., 1::2] - top[..., None]) / height[..., None]).clamp(0, 1)
    x = torch.where(flipped[..., None] > 0, 1 - x.flip(-1), x)
    inside = torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)
    kept = (inside[..., 2:] - inside[..., :2] >= SMALLEST).all(-1, keepdim=True)  # False for nan
    return torch.where(kept, inside, torch.nan)
