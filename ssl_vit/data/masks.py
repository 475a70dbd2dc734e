"""Which patches of an image are hidden: blocks, as in BEiT (2106.08254, algorithm 1), or squares, as in SimMIM."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ATTEMPTS = 10  # at one more block, as the official code
_MIN_ASPECT = 0.3  # of a block, height to width; at most the inverse


def blockwise_masks(counts: Tensor, height: int, width: int) -> Tensor:
    """Draw masks of blocks as BEiT's (arXiv 2106.08254): bool [N, height, width], True = hidden, on the CPU.

    counts: [N], how many patches to hide at most; where it is at least 1, one is hidden at least. Blocks are added
    until the count is reached or ten in a row don't fit. The smallest block has the 16 patches of a grid of 14 x 14,
    and as large a part of others; the largest, what is left to hide. All masks grow at once.

    >>> masks = blockwise_masks(torch.tensor([75, 75, 0]), 14, 14)
    >>> masks.shape, bool(masks.sum((1, 2)).max() <= 75), int(masks[2].sum())
    (torch.Size([3, 14, 14]), True, 0)
    """
    counts = counts.cpu()
    masks = torch.zeros(len(counts), height, width, dtype=torch.bool)
    left, failed = counts.clone(), torch.zeros_like(counts)
    while len(growing := ((left > 0) & (failed < _ATTEMPTS)).nonzero()[:, 0]):
        blocks, inside = _random_blocks(left[growing], height, width)
        new = (blocks & ~masks[growing]).sum((1, 2))
        fits = inside & (new > 0) & (new <= left[growing])
        failed[growing] = torch.where(fits, 0, failed[growing] + 1)
        growing = growing[fits]
        masks[growing] |= blocks[fits]
        left[growing] -= new[fits]
    return masks | _one_patch(masks, counts)


def random_masks(images: int, height: int, width: int, *, unit: int, ratio: float) -> Tensor:
    """Draw masks of squares of ``unit`` patches as SimMIM's (2111.09886): bool [images, height, width], True = hidden.

    Rounded up to whole squares, of which one is hidden at least and one left; on the CPU, from torch's generator.

    >>> random_masks(2, 4, 4, unit=2, ratio=0.6).sum((1, 2))
    tensor([12, 12])
    """
    rows, columns = -(-height // unit), -(-width // unit)
    hidden = min(max(1, math.ceil(rows * columns * ratio)), rows * columns - 1)
    coarse = torch.rand(images, rows * columns).argsort(1).argsort(1) < hidden
    fine = coarse.view(-1, rows, columns).repeat_interleave(unit, 1).repeat_interleave(unit, 2)
    return fine[:, :height, :width]


def _random_blocks(largest: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """A rectangle [N, height, width] for each largest area [N], and whether it is smaller than the grid both ways."""
    u = torch.rand(4, len(largest))
    smallest = max(1, (min(height, width) // 3) ** 2)
    area = smallest + (largest - smallest) * u[0]
    aspect = torch.exp((2 * u[1] - 1) * math.log(_MIN_ASPECT))
    h, w = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    top, side = (u[2] * (height - h + 1)).floor(), (u[3] * (width - w + 1)).floor()
    blocks = _within(height, top, h)[:, :, None] & _within(width, side, w)[:, None]
    return blocks, (h < height) & (w < width)


def _within(length: int, start: Tensor, count: Tensor) -> Tensor:
    """Which of ``length`` places lie in [start, start + count), bool [N, length]."""
    places, start = torch.arange(length), start[:, None]
    return (places >= start) & (places < start + count[:, None])


def _one_patch(masks: Tensor, counts: Tensor) -> Tensor:
    """A patch for each mask that has to hide some and found no block small enough."""
    chosen = torch.randint(masks[0].numel(), (len(masks), 1))
    one = torch.zeros_like(masks).flatten(1).scatter(1, chosen, True).view_as(masks)
    empty = (counts > 0) & ~masks.flatten(1).any(1)
    return one & empty[:, None, None]
