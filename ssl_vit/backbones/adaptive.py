"""What a backbone offers that computes less of some images: patches that it drops, or exits before the last.

A family has these by their names; whoever weighs accuracy against cost asks for them and knows no family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Classifier = Callable[[Tensor], Tensor]  # features [B, D] -> logits [B, K]


@runtime_checkable
class DropsPatches(Protocol):
    """A network that computes the share `keep_ratio` of its patches further, at each of several stages."""

    keep_ratio: float  # of the patches of the stage before; may be set between passes

    def counts(self, patches: int) -> list[int]:
        """How many of so many patches each stage keeps; ValueError where it is none."""
        ...


@runtime_checkable
class HasExits(Protocol):
    """A cascade of networks, any of which may answer."""

    def read(self, images: Tensor) -> list[Tensor]:
        """What a classifier of each network sees, [B, D] each; images: [B, C, H, W]."""
        ...

    def answer(
        self, images: Tensor, sure: Sequence[float], classifiers: Sequence[Classifier] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, K] of the first network that is sure of an image, and its number [B].

        sure: for all networks but the last, how large the largest probability has to be. classifiers: of what
        :meth:`read` gives; without, the networks' own.
        """
        ...


def leaving(sure: Tensor, least: Sequence[float]) -> Tensor:
    """The exit [N] that each image takes, given how sure each but the last is of it, [E - 1, N].

    >>> leaving(Tensor([[0.9, 0.2, 0.2], [0.1, 0.8, 0.3]]), (0.5, 0.5))
    tensor([0, 1, 2])
    """
    doubtful = sure < sure.new_tensor(least)[:, None]
    return doubtful.long().cumprod(0).sum(0)


def fit_thresholds(sure: Tensor, costs: Sequence[float], budget: float) -> tuple[float, ...]:
    """How sure each exit but the last must be, so that these images cost at most `budget` in the mean.

    Exit k answers a share of the images in proportion to q^k, as DVT's authors have it (2105.15075), the surest of
    those that are left; q is the largest that fits. sure: largest probabilities [E - 1, N] on images that nothing was
    learnt from; costs: of an image that leaves at each exit, rising.

    Errors: ValueError for a budget below the first exit's cost.

    >>> fit_thresholds(Tensor([[0.9, 0.5, 0.7, 0.6]]), (1.0, 3.0), budget=2.0)
    (0.699...,)
    """
    if budget < costs[0]:
        raise ValueError(f"a budget of {budget:g} is less than the first exit's {costs[0]:g}")

    def tried(power: float) -> tuple[float, ...]:
        return thresholds_of(sure, [math.exp(power * number) for number in range(len(costs))])

    def cost(least: Sequence[float]) -> float:
        return float(torch.tensor(costs, dtype=torch.float64)[leaving(sure, least).cpu()].mean())

    low, high, most = -50.0, 50.0, budget * (1 + 1e-9)  # what a mean of equal costs may be rounded to
    if cost(tried(high)) <= most:
        return tried(high)
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if cost(tried(middle)) <= most else (low, middle)
    return tried(low)


def thresholds_of(sure: Tensor, shares: Sequence[float]) -> tuple[float, ...]:
    """How sure each exit must be of an image to answer this share of all, of which the surest leave first."""
    count, left, found = sure.shape[1], sure, list[float]()
    for number, share in enumerate(shares[:-1]):
        out = min(round(count * share / sum(shares)), left.shape[1])
        ranked = left[number].sort(descending=True).values
        if out == len(ranked):
            found.append(0.0)  # all of them, and any image that is less sure
        else:
            found.append(float(ranked[out - 1]) - 1e-7 if out else 1.1)  # 1.1: nobody is so sure
        left = left[:, left[number] < found[-1]]
    return tuple(found)
