"""RUN/report: small files that a run keeps for its page, so that the page can be made again from the folder alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_vit.files import write_atomically

FOLDER, PAGE = "report", "report.html"
OPENING, SAMPLE, SPEED, VIEWS = "opening.json", "sample.json", "speed.jsonl", "views.json"
START, NOW = "start", "now"  # when the features are looked at; each has a .json
TILES, PHOTOS = "tiles.jpg", "photos.jpg"  # of all images of the sample, small; of the first ones, larger
TILE, ROW = 64, 32  # pixels of a tile, and tiles in a row
PHOTO = 112  # pixels of a photo


def put(run: Path, name: str, found: Any) -> None:
    """Keep what can be written as JSON."""
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    text = json.dumps(found)
    write_atomically(folder / name, lambda staged: staged.write_text(text, encoding="utf-8"))


def get(run: Path, name: str) -> Any:
    """What was kept under a name; None where there is nothing, or it is damaged."""
    return as_json(run / FOLDER / name)


def as_json(path: Path) -> Any:
    """What a file of JSON holds; None where there is none, or it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def keep_opening(
    run: Path, rows: Sequence[tuple[str, str]], decisions: Sequence[tuple[str, Any, str, str]], steps: int
) -> None:
    """Keep what a new run says at its start.

    rows: of the table about its images; decisions: settings that it chose: key, value, why, how to override; steps: in
    all.
    """
    chosen = [{"key": key, "value": str(value), "why": why} for key, value, why, _ in decisions]
    put(run, OPENING, {"rows": list(rows), "decisions": chosen, "steps": steps})


def as_line(line: bytes) -> dict[str, Any] | None:
    """What a line of JSON holds; None where it is damaged."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
