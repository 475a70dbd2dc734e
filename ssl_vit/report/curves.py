"""The curves of a run, read from its ``metrics.jsonl``: only what was added since the last look is read again."""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

POINTS = 240  # of a curve, at most: what a screen can show
KNN, HEADS = "knn/", "heads"  # what stands before k in a line of scores, and where a check has its heads
_STEP_ROW = "grad_norm"  # has this, and counts the steps before it; other rows count the steps done


@dataclass(frozen=True)
class Curve:
    """A curve is drawn through means over equal parts of the steps, between the least and the largest value of each."""

    steps: NDArray[np.float64]  # [n] steps done
    mean: NDArray[np.float64]  # [n]
    low: NDArray[np.float64]  # [n]
    high: NDArray[np.float64]  # [n]

    @property
    def last(self) -> float:
        """The newest mean."""
        return float(self.mean[-1])


class Series:
    """One number over steps, as it was written."""

    def __init__(self) -> None:
        self.steps, self.values = array("q"), array("d")

    def add(self, step: int, value: float) -> None:
        """Add a value after so many steps; those of later steps, which a killed run left, are forgotten."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
        self.steps.append(step)
        self.values.append(value)

    def times(self, across: float, up: float = 1.0) -> Series:
        """The same with steps and values in other units."""
        found = Series()
        for step, value in zip(self.steps, self.values, strict=True):
            found.add(round(step * across), value * up)
        return found

    def curve(self) -> Curve:
        """The curve has no more than ``POINTS`` points."""
        steps, values = np.asarray(self.steps, np.float64), np.asarray(self.values, np.float64)
        if not len(steps):
            return Curve(steps, values, values, values)
        parts = np.array_split(np.arange(len(steps)), min(POINTS, len(steps)))
        starts = [part[0] for part in parts]
        counts = np.array([len(part) for part in parts])
        return Curve(
            np.array([steps[part[-1]] for part in parts]),
            np.add.reduceat(values, starts) / counts,
            np.minimum.reduceat(values, starts),
            np.maximum.reduceat(values, starts),
        )


@dataclass
class Metrics:
    """What ``metrics.jsonl`` says: numbers of every step by name, checks and scores."""

    path: Path
    steps: dict[str, Series] = field(default_factory=dict)  # of every step: loss, lr, a method's own
    checks: list[dict[str, Any]] = field(default_factory=list)  # oldest first
    scores: list[dict[str, Any]] = field(default_factory=list)  # of k-NN, oldest first
    _read: int = 0  # bytes

    def read(self) -> Metrics:
        """Take in what was added; half a line waits for its other half, and a broken one is left out."""
        if not self.path.is_file():
            return self
        if self.path.stat().st_size < self._read:  # written anew, as by a run that is resumed
            self.steps, self.checks, self.scores, self._read = {}, [], [], 0
        with self.path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                self._take(line)
        return self

    @property
    def done(self) -> int:
        """How many steps were done."""
        loss = self.steps.get("loss")
        return loss.steps[-1] if loss and loss.steps else 0

    def of_checks(self, key: str) -> Series:
        """A number of the checks over steps."""
        return _series(self.checks, key)

    def of_scores(self, key: str) -> Series:
        """A number of the scores over steps."""
        return _series(self.scores, key)

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            step = int(row["step"])
        except (ValueError, TypeError, KeyError):
            return
        if _STEP_ROW in row:
            for name, value in row.items():
                if isinstance(value, float):
                    if name not in self.steps:
                        self.steps[name] = Series()
                    self.steps[name].add(step + 1, value)
        elif "health" in row:
            self.checks.append(row)
        elif any(key.startswith(KNN) for key in row):
            self.scores.append(row)


def _series(rows: list[dict[str, Any]], key: str) -> Series:
    found = Series()
    for row in rows:
        if isinstance(value := row.get(key), int | float):
            found.add(int(row["step"]), float(value))
    return found
