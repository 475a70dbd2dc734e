"""Blockwise masks against algorithm 1 of BEiT (2106.08254) written again with plain loops."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from ssl_vit.data.masks import blockwise_masks


def one_by_one(count: int, height: int, width: int, smallest: int, rng: random.Random) -> np.ndarray:
    """Blocks of random area and aspect until ``count`` patches are hidden or ten blocks in a row don't fit."""
    mask, hidden, failed = np.zeros((height, width), bool), 0, 0
    while hidden < count and failed < 10:
        failed += 1
        area = rng.uniform(smallest, count - hidden)
        aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = rng.randint(0, height - h), rng.randint(0, width - w)
            block = np.zeros_like(mask)
            block[top : top + h, left : left + w] = True
            new = int((block & ~mask).sum())
            if 0 < new <= count - hidden:
                mask, hidden, failed = mask | block, hidden + new, 0
    return mask


@pytest.mark.parametrize(("count", "height", "width", "smallest"), [(75, 14, 14, 16), (20, 7, 7, 4), (30, 8, 12, 4)])
def test_same_masks_in_distribution_as_one_by_one(count, height, width, smallest) -> None:
    number = 1500
    torch.manual_seed(0)
    ours = blockwise_masks(torch.full((number,), count), height, width).numpy()
    rng = random.Random(0)
    theirs = np.stack([one_by_one(count, height, width, smallest, rng) for _ in range(number)])
    assert ours.sum((1, 2)).max() <= count
    for measure in (
        lambda m: m.sum((1, 2)),  # patches hidden
        lambda m: (m[:, 1:] & m[:, :-1]).sum((1, 2)),  # neighbours above each other, both hidden
        lambda m: (m[:, :, 1:] & m[:, :, :-1]).sum((1, 2)),  # beside each other
        lambda m: m[:, 0, 0],  # corner
        lambda m: m[:, height // 2, width // 2],  # middle
        lambda m: m.any(2).sum(1),  # rows touched
    ):
        a, b = measure(ours).astype(float), measure(theirs).astype(float)
        error = math.sqrt((a.var() + b.var()) / number)
        assert abs(a.mean() - b.mean()) < 4 * error + 1e-9
        assert a.std() == pytest.approx(b.std(), rel=0.15)


def test_counts_differ_by_mask_and_none_hides_nothing() -> None:
    torch.manual_seed(0)
    counts = torch.tensor([0, 1, 10, 75, 196, 0])
    hidden = blockwise_masks(counts, 14, 14).sum((1, 2))
    assert bool((hidden <= counts).all())
    assert hidden.tolist()[0] == hidden.tolist()[-1] == 0
    assert hidden[3] > 60


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (2, 2), (3, 2)])
def test_something_is_hidden_on_any_grid(height, width) -> None:
    torch.manual_seed(0)
    hidden = blockwise_masks(torch.ones(50, dtype=torch.long), height, width).sum((1, 2))
    assert hidden.tolist() == [1] * 50


def test_only_the_global_generator_counts() -> None:
    masks = []
    for _ in range(2):
        torch.manual_seed(3)
        masks.append(blockwise_masks(torch.full((9,), 40), 14, 14))
    assert torch.equal(*masks)
    assert not torch.equal(masks[0], blockwise_masks(torch.full((9,), 40), 14, 14))
