"""Several runs on the same images: accuracies with intervals, and whether a difference is more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_vit.data.dataset_name import Images
from ssl_vit.errors import UserError
from ssl_vit.eval.api import outcome_of
from ssl_vit.eval.costs import Cost, cost_table, costs_of
from ssl_vit.eval.intervals import Z, wilson
from ssl_vit.eval.linear import percent

PAIRED = ("knn", "linear", "logistic", "grid")  # the kinds that are right or wrong about every image


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs, with its scores; everything is in percent but p."""

    run: str
    encoder: str
    top1: float
    low: float  # 95 % interval of top-1 (Wilson)
    high: float
    difference: float | None  # from the first run; None for itself
    difference_low: float | None  # its 95 % interval
    difference_high: float | None
    p: float | None  # McNemar's exact test against the first run, corrected by Holm for several runs


@dataclass(frozen=True)
class Comparison:
    """A comparison holds the scores of all runs and whether they differ by more than chance."""

    kind: str
    images: int
    protocol: str  # the hash that all share
    entries: tuple[ComparedRun, ...]
    costs: tuple[Cost, ...] = ()  # of each run, where they were asked for

    def table(self) -> str:
        """The table has a header, a line for each run, and one that says how they were compared; then the costs."""
        width = max(len(entry.run) for entry in self.entries)
        lines = [f"{'run':{width}}   top-1   95 % interval   against the first       p"]
        for entry in self.entries:
            line = f"{entry.run:{width}}  {entry.top1:6.2f}   {entry.low:5.2f} to {entry.high:5.2f}"
            if entry.difference is not None:
                interval = f"[{entry.difference_low:+.2f}, {entry.difference_high:+.2f}]"
                line += f"  {entry.difference:+6.2f} {interval:16} {entry.p:7.4f}"
            lines.append(line)
        lines.append(f"{self.kind}, {self.images} images, protocol {self.protocol}; p: McNemar's exact test, Holm")
        return "\n".join(lines + (["", cost_table(self.costs)] if self.costs else []))


def compare(
    runs: Sequence[Path | str], train: Images, val: Images, *, kind: str = "knn", costs: bool = False, **options: Any
) -> Comparison:
    """Score two or more runs (or files of weights) in one way on the same images, and test them in pairs.

    Each run is tested against the first. Both have seen the same images, so that only those count on which one is
    right and the other wrong (McNemar). costs: measure what each costs, too. options: as ``evaluate`` takes them. "knn"
    is that of k = 20.

    Raises:
        UserError: fewer than two runs, a kind without pairs, runs that can't be scored in the same way.
    """
    if len(runs) < 2:
        raise UserError(f"compare: {len(runs)} run; give two or more")
    if kind not in PAIRED:
        raise UserError(f"--kind {kind}: has no answer for each image to compare; choose {', '.join(PAIRED)}")
    if kind == "knn":
        options.setdefault("k", (20,))
    correct, encoders, hashes = list[NDArray[np.bool_]](), list[str](), list[str]()
    for run in runs:
        outcome, protocol = outcome_of(kind, run, train=train, val=val, **options)
        assert outcome.correct is not None  # PAIRED
        correct.append(outcome.correct)
        encoders.append(protocol.encoder)
        hashes.append(protocol.hash)
        if hashes[-1] != hashes[0]:
            raise UserError(
                f"{run}: was scored in another way than {runs[0]}; compare runs that read the same features"
            )
    ps = holm([mcnemar(correct[0], each) for each in correct[1:]])
    entries = [_entry(str(runs[0]), encoders[0], correct[0], None, None)]
    for run, encoder, each, p in zip(runs[1:], encoders[1:], correct[1:], ps, strict=True):
        entries.append(_entry(str(run), encoder, each, correct[0], p))
    return Comparison(kind, len(correct[0]), hashes[0], tuple(entries), costs_of(runs) if costs else ())


def _entry(
    run: str, encoder: str, correct: NDArray[np.bool_], first: NDArray[np.bool_] | None, p: float | None
) -> ComparedRun:
    low, high = wilson(int(correct.sum()), len(correct))
    more, least, most = paired_difference(first, correct) if first is not None else (None, None, None)
    return ComparedRun(run, encoder, percent(correct), low, high, more, least, most, p)


def paired_difference(
    a: NDArray[np.bool_ | np.float64], b: NDArray[np.bool_ | np.float64]
) -> tuple[float, float, float]:
    """The result says by how many percent of the same images [M] b is better, and the ends of its 95 % interval."""
    each = b.astype(float) - a
    mean, half = float(each.mean()), Z * float(each.std()) / math.sqrt(len(each))
    return 100 * mean, 100 * (mean - half), 100 * (mean + half)


def mcnemar(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """McNemar's exact test (two-sided) gives p: how likely chance would split the images on which a and b differ so.

    a, b: whether each image is classified rightly, [M].

    >>> round(mcnemar(np.array([True] * 5), np.array([False] * 5)), 4)
    0.0625
    """
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    count, fewer = only_a + only_b, min(only_a, only_b)
    logs = [
        math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) - count * math.log(2)
        for i in range(fewer + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's correction raises each p so that the chance of one false alarm among all tests stays what a p says.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    found, least = [0.0] * len(ps), 0.0
    for place, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        least = max(least, min(1.0, (len(ps) - place) * ps[i]))
        found[i] = least
    return found
