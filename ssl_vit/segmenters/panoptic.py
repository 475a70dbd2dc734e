"""Masks with a class each become segments that don't overlap, as MaskFormer does it (arXiv 2107.06278)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

SURE, OVERLAP = 0.8, 0.8  # of the official models: least score of a query, least share of its mask that is its own


def merged(
    logits: Tensor, masks: Callable[[Tensor], Iterable[Tensor]], things: Sequence[bool], sure: float = SURE
) -> tuple[Tensor, Tensor]:
    """Give every pixel to the surest mask there, int64 [H, W] with -1 where there is none; and the segments' classes.

    logits: [Q, C + 1], "nothing" last; masks: gives the masks of some queries, each [H, W] in [0, 1]. A mask of which
    too much belongs to others is left out; segments of a class that is no thing are one.
    """
    scores, labels = logits.softmax(-1).max(-1)
    kept = torch.nonzero((labels < logits.shape[-1] - 1) & (scores > sure))[:, 0]
    if not len(kept):
        return torch.full_like(next(iter(masks(torch.zeros(1, dtype=torch.int64)))), -1, dtype=torch.int64), kept
    owner, areas = _owners(masks(kept), scores[kept])
    segments, classes = torch.full_like(owner, -1), list[int]()
    stuff = dict[int, int]()
    for place, label in enumerate(labels[kept].tolist()):
        own = owner == place
        if not areas[place] or not own.any() or own.sum() / areas[place] <= OVERLAP:
            continue
        number = stuff.get(label, len(classes))
        if number == len(classes):
            classes.append(label)
            if not things[label]:
                stuff[label] = number
        segments[own] = number
    return segments, torch.tensor(classes, dtype=torch.int64, device=logits.device)


def _owners(masks: Iterable[Tensor], scores: Tensor) -> tuple[Tensor, list[int]]:
    """The place of the mask with the highest score at every pixel [H, W], and the area of each mask, pixels."""
    best, owner, areas = None, torch.empty(0), list[int]()
    for place, (mask, score) in enumerate(zip(masks, scores, strict=True)):
        areas.append(int((mask >= 0.5).sum()))
        weighted = mask * score
        if best is None:
            best, owner = weighted, torch.zeros_like(mask, dtype=torch.int64)
            continue
        owner = torch.where(weighted > best, place, owner)
        best = torch.maximum(weighted, best)
    return owner, areas
