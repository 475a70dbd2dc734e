"""Folders of runs that no run has made: as large, as strange or as broken as a test needs them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from ssl_vit.report import kept

PROTOCOL = {"hash": "abc", "score": "knn", "encoder": "vit", "images": {"val": 200}, "k": [20], "transform": "crop 32"}
CHECK = {"health": "learning", "verdict": "The loss falls.", "loss": 1.0, "uniform_loss": 4.0, "rank": 7.5}
CHECK |= {"views": 128, "own_view": 0.4, "own_view_start": 0.1}


def run_folder(
    run: Path, steps: int = 40, *, names: list[str] | None = None, knn: float = 61.0, seed: int = 0, **settings: Any
) -> Path:
    """A run of so many steps, with all that it keeps for its page; settings: as "method__name"."""
    names = names or [f"{i}.png" for i in range(24)]
    (run / "report").mkdir(parents=True)
    config: dict[str, Any] = {"method": {"name": "dino"}, "backbone": {"name": "vit", "image_size": 32}}
    config |= {"train": {"batch_size": 8, "seed": seed}, "data": {"path": "images"}}
    for key, value in settings.items():
        section, name = key.split("__")
        config[section][name] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [{"step": i, "loss": 4 - i / steps, "lr": 1e-3, "grad_norm": 1.0} for i in range(steps)]
    checks = [CHECK | {"step": step} for step in (steps // 2, steps)]
    scores = [{"step": step, "knn/20": knn, "protocol": PROTOCOL} for step in (0, steps)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*lines, *checks, *scores]))
    keep_pictures(run, names)
    rows, chosen = [("images", "24 of images"), ("left out", "3 .txt files")], [("optim.lr", 0.1, "usual", "--set …")]
    kept.keep_opening(run, rows, chosen, steps)
    return run


def keep_pictures(run: Path, names: list[str]) -> None:
    """What a look keeps of these images."""
    count, shown = len(names), list(range(8))
    sample = {"names": names, "labels": [0] * count, "classes": names[:1], "shown": shown, "index": list(range(count))}
    kept.put(run, kept.SAMPLE, sample)
    near = [[query, [[(query + 1 + i) % count, 0.9] for i in range(6)]] for query in shown]
    places = np.random.default_rng(0).normal(size=(count, 2)).tolist()
    for when, step in ((kept.START, 0), (kept.NOW, 20)):
        seen = {"map": places, "share": 0.5, "neighbours": near, "heads": 2, "whose": "class token", "step": step}
        kept.put(run, f"{when}.json", seen | {"cells": ["patches", "head-0"], "drawn": ["seen"]})
    kept.put(run, kept.VIEWS, {"views": ["global, 32 px", "global, 32 px"]})
    files = ["tiles.jpg", "photos.jpg", "view-0.jpg", "view-1.jpg", "now-drawn-seen.jpg"]
    files += [f"{when}-{name}.png" for when in (kept.START, kept.NOW) for name in ("patches", "head-0")]
    for name in files:
        Image.fromarray(np.full((16, 64, 3), 90, np.uint8)).save(run / "report" / name)
    (run / "report" / kept.SPEED).write_text('{"step": 20, "images_per_second": 50.0, "wait": 0.1, "gb": 0.5}\n')


class Read(HTMLParser):
    """A page as a browser reads it: elements with their attributes, and its text by element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, Mapping[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._open):
            self.text.append(data)

    def all(self, tag: str) -> list[Mapping[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def sections(self) -> list[str]:
        return [str(each["id"]) for each in self.all("section")]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())
