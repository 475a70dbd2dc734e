"""What came of a sweep: cells that differ by their seed alone are a line, the best first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ssl_vit.files import write_atomically
from ssl_vit.sweep.plan import SEED, SweepPlan

_NAMES = {"knn": "k-NN top-1, %", "rank": "effective rank"}


@dataclass(frozen=True)
class Line:
    """A line is one choice of all settings but the seed: the mean of its seeds' last scores, and half of its 95 %
    interval (Student's t) where there are two or more."""

    settings: Mapping[str, Any]
    scores: Sequence[float]
    mean: float
    half: float | None
    by_percent: Mapping[str, float]  # the mean of the cells that were scored there


@dataclass(frozen=True)
class Result:
    """The result has the lines, best first, and every cell."""

    score: str
    lines: Sequence[Line]
    cells: Sequence[Mapping[str, Any]]

    def failures(self) -> str:
        """Why cells failed, each reason once; "" where none did."""
        why = {cell["why"]: cell["cell"] for cell in self.cells if cell["state"] == "failed"}
        return "; ".join(f"{cell}: {reason}" for reason, cell in why.items())

    def __str__(self) -> str:
        keys = sorted({key for line in self.lines for key in line.settings})
        head = [*keys, _NAMES[self.score], "±", "seeds"]
        rows = [[*(_shown(line.settings.get(key)) for key in keys), *_numbers(line)] for line in self.lines]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        table = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)) for row in [head, *rows]]
        states = [cell["state"] for cell in self.cells]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        failed = [f"failed: {self.failures()}"] if self.failures() else []
        return "\n".join([*(line.rstrip() for line in table), f"cells: {counts}", *failed])


def result_of(plan: SweepPlan, cells: Sequence[Mapping[str, Any]]) -> Result:
    """Put cells together that differ by their seed alone."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        own = {key: value for key, value in cell["settings"].items() if key != SEED}
        groups.setdefault(json.dumps(own, sort_keys=True), []).append(cell)
    lines = [
        _line(json.loads(key), group) for key, group in groups.items() if any(c["score"] is not None for c in group)
    ]
    return Result(plan.score, sorted(lines, key=lambda line: -line.mean), cells)


def write_result(result: Result, out: Path) -> None:
    """Write ``OUT/sweep.json``, whole or not at all."""
    text = json.dumps(asdict(result), indent=2) + "\n"
    write_atomically(out / "sweep.json", lambda staged: staged.write_text(text, encoding="utf-8"))


def _line(settings: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> Line:
    scores = [cell["score"] for cell in cells if cell["score"] is not None]
    percents = sorted({int(percent) for cell in cells for percent in cell["by_percent"]})
    seen = {str(p): [c["by_percent"][str(p)] for c in cells if str(p) in c["by_percent"]] for p in percents}
    half = None
    if len(scores) > 1:
        from ssl_vit.eval.intervals import half_interval

        half = half_interval(scores)
    return Line(settings, scores, fmean(scores), half, {percent: fmean(found) for percent, found in seen.items()})


def _numbers(line: Line) -> list[str]:
    return [f"{line.mean:.1f}", "" if line.half is None else f"{line.half:.1f}", str(len(line.scores))]


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
