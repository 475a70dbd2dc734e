"""Regions of an image grow together, from single cells to the whole image.

Ward's criterion on a grid: what joins next is the pair of neighbours whose union spreads its features least (Ward
1963), times how badly the union fills its box, which selective search calls fill (Uijlings et al. 2013). All pairs that
are each other's best join at once, in rounds over whole arrays, instead of one by one out of a queue.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_HASH = np.uint64(2654435761)  # odd, so that numbers below 2^32 stay different (Knuth)
_LOW = np.uint64(2**32 - 1)
_NONE = np.uint64(2**64 - 1)

_Ints = NDArray[np.int64]
_Floats = NDArray[np.float32]


class Grown(NamedTuple):
    """Every region that became part of a larger one is here, in the order in which they did."""

    boxes: _Floats  # [n, 4] left, top, right, bottom, cells
    sizes: _Floats  # [n] cells
    levels: _Floats  # [n] what the union cost that the region vanished in, or one before it where that cost more


def grow(features: _Floats) -> Grown:
    """Grow all 2 (H W - 1) regions of a grid of features [H, W, C], two cells or more; the whole grid is left out."""
    height, width, channels = features.shape
    top, left = np.divmod(np.arange(height * width, dtype=np.float32), np.float32(width))
    ones = np.ones_like(top)
    live = _Live(
        added=np.concatenate([features.reshape(-1, channels).T.astype(np.float32), ones[None]]),
        largest=np.stack([-left, -top, left + 1, top + 1, 0 * ones]),
    )
    one, other = _neighbours(height, width)
    sizes, rest = [], []
    while len(one):
        cost = _cost(live, one, other)
        chosen = _each_others_best(cost, one, other, live.number)
        kept, lost = one[chosen], other[chosen]
        ended = np.concatenate([kept, lost])
        live.largest[-1, ended] = np.tile(_levels(live, kept, lost, cost[chosen]), 2)
        sizes.append(live.added[-1].take(ended))
        rest.append(live.largest.take(ended, 1))
        live, number = _joined(live, kept, lost)
        one, other = _renumbered(number, one, other, live.number)
    left, top, right, bottom, levels = np.concatenate(rest, 1)
    return Grown(np.stack([-left, -top, right, bottom], 1), np.concatenate(sizes), levels)


class _Live(NamedTuple):
    """The n regions there are, as what a union adds up and what it takes the larger of."""

    added: _Floats  # [C + 1, n] features summed over cells, and the number of cells
    largest: _Floats  # [5, n] -left, -top, right, bottom, and the most that a union within cost

    @property
    def number(self) -> int:
        return len(self.added[0])


def _neighbours(height: int, width: int) -> tuple[_Ints, _Ints]:
    """The cells on both sides of every border, of four neighbours a cell."""
    cells = np.arange(height * width).reshape(height, width)
    sides = ((cells[:, :-1], cells[:, 1:]), (cells[:-1], cells[1:]))
    one, other = (np.concatenate([side.ravel() for side in part]) for part in zip(*sides, strict=True))
    return one, other


def _cost(live: _Live, one: _Ints, other: _Ints) -> _Floats:
    """What the union of each pair would cost: [m]."""
    spread = np.zeros(len(one), np.float32)
    for mean in live.added[:-1] / live.added[-1]:
        difference = mean.take(one)
        difference -= mean.take(other)
        difference *= difference
        spread += difference
    a, b = live.added[-1].take(one), live.added[-1].take(other)
    size = a + b
    left, top, right, bottom = np.maximum(live.largest[:4].take(one, 1), live.largest[:4].take(other, 1))
    cost: _Floats = spread * (a * b) * ((left + right) * (top + bottom)) / (size * size)
    return cost


def _each_others_best(cost: _Floats, one: _Ints, other: _Ints, count: int) -> _Ints:
    """The pairs of which each side has no cheaper one; no region is in two.

    Equal costs go by a hash of the pair's number: by the number itself, a plain area would join cell after cell.
    """
    order = cost.view(np.uint32).astype(np.uint64) << np.uint64(32)  # floats from 0 on sort as their bits do
    order |= np.arange(len(one), dtype=np.uint64) * _HASH & _LOW
    best = np.full(count, _NONE)
    np.minimum.at(best, one, order)
    np.minimum.at(best, other, order)
    return np.flatnonzero((best.take(one) == order) & (best.take(other) == order))


def _levels(live: _Live, kept: _Ints, lost: _Ints, cost: _Floats) -> _Floats:
    """What some unions cost, or a union within one of their sides where that cost more."""
    levels: _Floats = np.maximum(cost, np.maximum(live.largest[-1].take(kept), live.largest[-1].take(lost)))
    return levels


def _joined(live: _Live, kept: _Ints, lost: _Ints) -> tuple[_Live, _Ints]:
    """The regions after some unions, and the new number of each old one."""
    live.added[:, kept] += live.added.take(lost, 1)
    live.largest[:, kept] = np.maximum(live.largest.take(kept, 1), live.largest.take(lost, 1))
    stays = np.ones(live.number, bool)
    stays[lost] = False
    number = np.cumsum(stays) - 1
    number[lost] = number[kept]
    staying = np.flatnonzero(stays)
    return _Live(live.added.take(staying, 1), live.largest.take(staying, 1)), number


def _renumbered(number: _Ints, one: _Ints, other: _Ints, count: int) -> tuple[_Ints, _Ints]:
    """Pairs of new regions, each once."""
    one, other = number.take(one), number.take(other)
    pairs = np.minimum(one, other) * count + np.maximum(one, other)
    pairs = np.sort(pairs[one != other])
    first = np.ones(len(pairs), bool)
    np.not_equal(pairs[1:], pairs[:-1], out=first[1:])
    one, other = np.divmod(pairs[first], count)
    return one, other
