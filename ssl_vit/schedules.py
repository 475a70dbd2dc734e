"""Schedules as pure functions of the step, so that a resumed run needs no history. Needs no torch.

The formulas are those of the official DINO code (2104.14294), to the step.
"""

from __future__ import annotations

import hashlib
import math
from itertools import pairwise
from typing import NamedTuple


def cosine(start: float, end: float, step: int, total: int) -> float:
    """Half a cosine from ``start`` at step 0 towards ``end`` at ``total``.

    >>> [round(cosine(0.996, 1.0, s, 100), 4) for s in (0, 50, 100)]
    [0.996, 0.998, 1.0]
    """
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * min(step, total) / max(total, 1)))


def linear(start: float, end: float, step: int, steps: int) -> float:
    """From ``start`` at step 0 to ``end`` at the last of ``steps`` points, then constant.

    >>> [linear(0.0, 1.0, s, 5) for s in (0, 2, 4, 9)]
    [0.0, 0.5, 1.0, 1.0]
    """
    if step >= steps - 1:
        return end
    return start + (end - start) * step / (steps - 1)


def warmup_cosine(peak: float, end: float, step: int, total: int, warmup: int) -> float:
    """Linear from 0 to ``peak`` over ``warmup`` steps, then half a cosine to ``end``.

    >>> [round(warmup_cosine(1.0, 0.0, s, 110, 10), 3) for s in (0, 9, 10, 60, 110)]
    [0.0, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return linear(0.0, peak, step, warmup)
    return cosine(peak, end, step - warmup, total - warmup)


def held(peak: float, end: float, step: int, total: int, warmup: int, cooldown: int) -> float:
    """Linear from 0 to ``peak`` over ``warmup`` steps, then constant, then linear to ``end`` over the ``cooldown``.

    With a cool-down this is warm-up, stable, decay (2404.06395); without, a constant rate.

    >>> [round(held(1.0, 0.0, s, 110, 10, 20), 3) for s in (0, 9, 50, 90, 100, 110)]
    [0.0, 1.0, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return linear(0.0, peak, step, warmup)
    return end + (peak - end) * _left(step, total, cooldown)


def rsqrt(peak: float, end: float, step: int, total: int, warmup: int, cooldown: int) -> float:
    """As :func:`held`, but after the warm-up the rate falls with the root of the step (2106.04560).

    It is ``peak`` at the end of the warm-up, half of that at four times its steps, a third at nine times; so a run can
    be cooled down anywhere, or be made longer.

    >>> [round(rsqrt(1.0, 0.0, s, 110, 10, 20), 3) for s in (0, 9, 10, 40, 90, 100, 110)]
    [0.0, 1.0, 1.0, 0.5, 0.333, 0.158, 0.0]
    """
    if step < warmup:
        return linear(0.0, peak, step, warmup)
    start = max(1, warmup)
    falling = peak / math.sqrt(1 + (step - warmup) / start)
    return end + max(0.0, falling - end) * _left(step, total, cooldown)


def _left(step: int, total: int, cooldown: int) -> float:
    """What a cool-down over the last steps leaves of a rate, from 1 to 0."""
    return min(1.0, max(0, total - step) / cooldown) if cooldown else 1.0


class Phase(NamedTuple):
    """Steps of a run, ``start`` to ``stop``, in which global crops have ``size`` pixels."""

    size: int
    start: int
    stop: int


def size_shares(text: str) -> list[tuple[int, float]]:
    """The sizes of a schedule such as "112:0.75,224:0.25", and the share of the steps that each has.

    Raises ValueError where they don't rise, or the shares are not those of a whole.

    >>> size_shares("112:0.75, 224:0.25")
    [(112, 0.75), (224, 0.25)]
    """
    found = []
    for part in text.split(","):
        size, _, share = part.partition(":")
        try:
            found.append((int(size), float(share)))
        except ValueError:
            raise ValueError(f'SIZE:SHARE,SIZE:SHARE, as "112:0.75,224:0.25"; {part.strip()!r} is none') from None
    sizes, shares = [size for size, _ in found], [share for _, share in found]
    if sizes[0] < 1 or any(a >= b for a, b in pairwise(sizes)):
        raise ValueError("sizes that rise, the smallest first")
    if not all(0 < share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"shares above 0 that make 1 together; these make {sum(shares):g}")
    return found


def phases(sizes: str, total: int) -> list[Phase]:
    """The parts of a run of so many steps; one that is too short for a step is left out.

    >>> phases("112:0.75,224:0.25", 10)
    [Phase(size=112, start=0, stop=8), Phase(size=224, start=8, stop=10)]
    """
    found, start, share = list[Phase](), 0, 0.0
    for size, part in size_shares(sizes):
        share += part
        stop = round(min(share, 1.0) * total)
        if stop > start:
            found.append(Phase(size, start, stop))
        start = stop
    return found


def noise_seed(seed: int, step: int, rank: int) -> int:
    """The seed of a step's model noise (drop path, dropout), the same whenever the step is run.

    >>> noise_seed(0, 5, 0) == noise_seed(0, 5, 0) != noise_seed(0, 5, 1)
    True
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()) >> 1
