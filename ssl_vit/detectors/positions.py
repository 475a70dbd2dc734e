"""DETR (arXiv 2005.12872) adds sine positions of the cells of a map to queries and keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_position_map(padding: Tensor, dim: int, *, centred: bool = False) -> Tensor:
    """Make positions [B, dim, H, W]: half of the channels tell the row, half the column, each from 0 to 2 pi.

    padding: bool, True beside the image, whose cells count for nothing. centred: a cell's position is its centre
    (Deformable DETR, arXiv 2010.04159), not its far edge (DETR).
    """
    inside = (~padding).float()
    frequency = 10_000 ** (2 * (torch.arange(dim // 2, device=padding.device) // 2) / (dim // 2))
    parts = []
    for axis in (1, 2):
        place = inside.cumsum(axis)
        whole = place.narrow(axis, place.shape[axis] - 1, 1)
        angle = (place - 0.5 * centred) / (whole + 1e-6) * 2 * math.pi
        angle = angle[..., None] / frequency
        parts.append(torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1).flatten(-2))
    return torch.cat(parts, dim=-1).permute(0, 3, 1, 2)
