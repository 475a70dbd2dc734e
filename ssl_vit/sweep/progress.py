"""How far a cell's run is, and its scores, read from its folder while another process writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_KNN, _K = "knn/", "knn/20"  # of a line of scores; k = 20 where it is among them


class Watched:
    """A watched run tells each new score once, with how much of the run lay before it."""

    def __init__(self, folder: Path, score: str) -> None:
        self._folder, self._score = folder, score
        self._read, self._steps = 0, 0
        self.last: float | None = None

    def news(self) -> Iterator[tuple[int, float]]:
        """(percent of the run, score) of what has come since it was asked last."""
        for row in self._rows():
            score = _score(row, self._score)
            if score is not None:
                self.last = score
                yield min(100, round(100 * row["step"] / max(1, self._total()))), score

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The whole lines of metrics.jsonl that were not read yet; all again where it has been cut, as by --resume."""
        path = self._folder / "metrics.jsonl"
        if not path.exists():
            return
        if path.stat().st_size < self._read:
            self._read = 0
        with path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._read += len(line)
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict) and isinstance(row.get("step"), int):
                    yield row

    def _total(self) -> int:
        """The steps of the whole run, as its folder says them."""
        if not self._steps:
            from ssl_vit.config import load_config

            config = load_config([self._folder / "config.yaml"])
            images = json.loads((self._folder / "data.json").read_bytes())["images"]
            train: Any = config.train
            self._steps = int(images // train.batch_size) * int(train.epochs)
        return self._steps


def _score(row: dict[str, Any], score: str) -> float | None:
    if score == "rank":
        found = row.get("rank") if "health" in row else None
    else:
        found = row.get(_K, next((value for key, value in row.items() if key.startswith(_KNN)), None))
    return float(found) if isinstance(found, int | float) else None
