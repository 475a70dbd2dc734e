"""What a run's folder tells, as the page needs it: everything may be missing, and nothing here computes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ssl_vit.eval.intervals import wilson
from ssl_vit.report import kept
from ssl_vit.report.curves import KNN, Metrics

GOOD, BAD = ("learning",), ("uniform collapse", "constant-output collapse", "diverged")
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Score:
    """A score in percent with its 95 % interval."""

    k: str
    top1: float
    low: float
    high: float
    images: int


@dataclass
class Story:
    """A run, from its folder."""

    run: Path
    metrics: Metrics

    @classmethod
    def of(cls, run: Path, metrics: Metrics | None = None) -> Story:
        """Read a run; metrics: those that were read before, of which only what is new is read."""
        return cls(run, (metrics or Metrics(run / "metrics.jsonl")).read())

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved settings."""
        try:
            found = yaml.safe_load((self.run / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            found = None
        return found if isinstance(found, dict) else {}

    def setting(self, key: str) -> Any:
        """A setting by its key; None where it isn't there."""
        found: Any = self.config
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found

    @cached_property
    def opening(self) -> dict[str, Any]:
        """What it said at its start."""
        return _dict(kept.get(self.run, kept.OPENING))

    @cached_property
    def complete(self) -> dict[str, Any] | None:
        """What it said at its end; None before it."""
        found = kept.as_json(self.run / "COMPLETE")
        return found if isinstance(found, dict) else None

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What else was found out at its end."""
        return _dict(kept.as_json(self.run / SUMMARY))

    @property
    def helped(self) -> dict[str, Any]:
        """Whether the weights are better than those that the run began with, as it found."""
        return _dict(self.summary.get("did_it_help"))

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions and devices."""
        return _dict(kept.as_json(self.run / "environment.json"))

    @property
    def batch(self) -> int:
        """Images a step."""
        found = self.setting("train.batch_size")
        return found if isinstance(found, int) else 1

    @property
    def total(self) -> int | None:
        """Steps in all."""
        found = self.opening.get("steps") or (self.complete or {}).get("steps")
        return found if isinstance(found, int) else None

    @property
    def done(self) -> int:
        """Steps that were done."""
        return max(self.metrics.done, int((self.complete or {}).get("steps") or 0))

    @property
    def verdict(self) -> tuple[str, str]:
        """Its kind and its sentence."""
        found = (self.complete or {}).get("verdict")
        if isinstance(found, dict):
            return str(found.get("kind")), str(found.get("sentence"))
        if self.metrics.checks:
            row = self.metrics.checks[-1]
            return str(row["health"]), str(row.get("verdict", ""))
        return "not checked yet", f"The first check comes after {self.setting('health.every') or 'some'} steps."

    @property
    def tone(self) -> str:
        """How the verdict is coloured."""
        kind = self.verdict[0]
        return "good" if kind in GOOD else "bad" if kind in BAD else "open"

    def check(self, key: str) -> float | None:
        """A number of the newest check."""
        found = self.metrics.checks[-1].get(key) if self.metrics.checks else None
        return float(found) if isinstance(found, int | float) and math.isfinite(found) else None

    @cached_property
    def scores(self) -> list[Score]:
        """The newest k-NN scores."""
        rows = self.metrics.scores
        if not rows:
            return []
        protocol = _dict(rows[-1].get("protocol"))
        images = _dict(protocol.get("images")).get("val")
        count = images if isinstance(images, int) and images > 0 else 0
        found = []
        for key, value in rows[-1].items():
            if key.startswith(KNN) and isinstance(value, int | float):
                low, high = wilson(round(count * value / 100), count) if count else (value, value)
                found.append(Score(key.removeprefix(KNN), float(value), low, high, count))
        return found

    @property
    def best_k(self) -> str | None:
        """The k whose score is drawn: 20, or what there is."""
        ks = [score.k for score in self.scores]
        return "20" if "20" in ks else ks[-1] if ks else None

    @property
    def score(self) -> Score | None:
        """The score of that k."""
        return next((score for score in self.scores if score.k == self.best_k), None)

    @cached_property
    def start(self) -> dict[str, Any]:
        """What was seen of the network before the first step."""
        return _dict(kept.get(self.run, f"{kept.START}.json"))

    @cached_property
    def now(self) -> dict[str, Any]:
        """What was seen last."""
        return _dict(kept.get(self.run, f"{kept.NOW}.json"))

    @cached_property
    def sample(self) -> dict[str, Any]:
        """The images that pictures are of."""
        return _dict(kept.get(self.run, kept.SAMPLE))

    @cached_property
    def snippets(self) -> list[tuple[str, str]]:
        """For each export of the run its folder and the Python that loads it."""
        found = []
        for card in sorted(self.run.glob("export*/README.md")):
            code = re.search(r"```python\n(.*?)\n```", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
            if code:
                found.append((card.parent.name, code[1]))
        return found

    def settings(self) -> Iterator[tuple[str, str, str]]:
        """Each setting: key, value, and why where the run chose it."""
        reasons = {each["key"]: each["why"] for each in self.opening.get("decisions", [])}
        for key, value in _flat(self.config):
            yield key, value, reasons.get(key, "")

    def file(self, name: str) -> Path | None:
        """A file of RUN/report, where it is there."""
        path = self.run / kept.FOLDER / name
        return path if path.is_file() else None


def _dict(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def _flat(found: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in found.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            shown = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            yield f"{before}{key}", shown
