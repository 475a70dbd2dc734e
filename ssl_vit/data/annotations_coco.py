"""COCO's annotations lie in one JSON file: https://cocodataset.org/#format-data."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ssl_vit.data.annotations import BAD_OUTLINE, Annotations, Raw, Size, distinct
from ssl_vit.data.outlines import Outline, polygons, runs
from ssl_vit.errors import UserError

CROWDS = "whose iscrowd is neither 0 nor 1"
_LONGEST = 1_000_000  # pixels a side of an image
_EXPECTED = "expected COCO's images, annotations, categories"
_CROWD = {0: False, 1: True, "0": False, "1": True, None: False}

Entry = Mapping[str, Any]


def read(path: Path, images: Path, outlined: bool = False) -> Annotations:
    """Read the boxes of a file whose image names are relative to `images`; classes come by their numbers."""
    content = load(path)
    tables = {name: entries(path, content, name) for name in ("images", "annotations", "categories")}
    classes, number, notes = classes_of(path, tables["categories"])
    found = Annotations(str(images), classes, outlined, notes=notes)
    boxes: dict[int, list[Entry]] = defaultdict(list)
    for entry in tables["annotations"]:
        boxes[whole_of(path, "annotations", entry, "image_id")].append(entry)
    known = set[int]()
    for name, (size, keys) in files_of(path, tables["images"], found.notes).items():
        known.update(keys)
        own = [entry for key in keys for entry in boxes.get(key, [])]
        found.add(there(images, name), size, partial(_raw, name, own, number, outlined))
    strangers = sorted(boxes.keys() - known)
    if strangers:
        kind = "of an image that is not listed"
        found.broken[kind] = [
            f"annotation {_id(box)} of image {str(key)[:40]}" for key in strangers for box in boxes[key]
        ]
    return found


def classes_of(path: Path, categories: Sequence[Entry]) -> tuple[tuple[str, ...], dict[int, int], list[str]]:
    """The classes, the class of each category's number, and notes."""
    numbered = dict[int, str]()
    for entry in categories:
        key = whole_of(path, "categories", entry, "id")
        name = _text_of(path, "categories", entry, "name").strip()
        if numbered.setdefault(key, name) != name:
            raise UserError(
                f"{path}: two categories have the id {str(key)[:40]}, {numbered[key]!r} and {name!r}; mend one"
            )
    keys = sorted(numbered)
    classes, places, notes = distinct([numbered[key] for key in keys], path)
    return classes, dict(zip(keys, places, strict=True)), notes


def files_of(path: Path, images: Sequence[Entry], notes: list[str]) -> dict[str, tuple[Size | None, list[int]]]:
    """The size and the numbers of each file; one that is listed under several numbers has the boxes of all."""
    files, seen, twice = dict[str, tuple[Size | None, list[int]]](), set[int](), set[str]()
    for entry in images:
        key = whole_of(path, "images", entry, "id")
        if key in seen:
            raise UserError(f"{path}: two images have the id {str(key)[:40]}; each needs its own")
        seen.add(key)
        name = _text_of(path, "images", entry, "file_name")
        size, keys = files.setdefault(name, (_size(path, entry), []))
        if keys:
            twice.add(name)
            if size != _size(path, entry):
                raise UserError(f"{path}: {name} is listed twice, with two sizes; mend one")
        keys.append(key)
    if twice:
        notes.append(f"{path}: {len(twice)} images are listed more than once, as {min(twice)}; each has all its boxes")
    return files


def _size(path: Path, entry: Entry) -> Size | None:
    """The size of an image; None where it has none, as where both sides are left out or 0."""
    if not entry.get("height") and not entry.get("width"):
        return None
    height, width = (whole_of(path, "images", entry, side) for side in ("height", "width"))
    if not (1 <= height <= _LONGEST and 1 <= width <= _LONGEST):
        raise UserError(f"{path}: an image of {str(width)[:20]} x {str(height)[:20]} pixels: {_shown(entry)}; mend it")
    return height, width


def there(images: Path, name: str) -> str:
    """The name of a file that is there: one that was written on Windows may have its separators."""
    slashed = name.replace("\\", "/")
    return slashed if slashed != name and os.path.isfile(images / slashed) else name


def _raw(name: str, boxes: Sequence[Entry], number: Mapping[int, int], outlined: bool, size: Size) -> Iterator[Raw]:
    for entry in boxes:
        label, area = whole(entry.get("category_id")), _real(entry.get("area"))
        crowd = entry.get("iscrowd")
        known = isinstance(crowd, int | float | str | None) and crowd in _CROWD
        outline, fault = _outline(entry.get("segmentation"), size) if outlined else (None, None)
        yield Raw(
            f"{name}, annotation {_id(entry)}",
            _corners(entry.get("bbox")),
            None if label is None else number.get(label),
            known and _CROWD[crowd],
            area if area > 0 else None,
            outline,
            fault if known else CROWDS,
        )


def _corners(box: Any) -> list[float]:
    if not isinstance(box, list) or len(box) != 4:
        return []
    left, top, width, height = map(_real, box)
    return [left, top, left + width, top + height]


def _outline(segmentation: Any, size: Size) -> tuple[Outline | None, str | None]:
    """An outline, and what is wrong with it; neither where there is none."""
    if not segmentation and not isinstance(segmentation, str):
        return None, None
    found: Outline | None = None
    if isinstance(segmentation, list):
        nested = all(isinstance(ring, list) for ring in segmentation)
        found = polygons(segmentation if nested else [segmentation], size)
    elif isinstance(segmentation, dict):
        found = runs(segmentation, size)
    return found, BAD_OUTLINE if found is None else None


def load(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object; UserError for anything else."""
    try:
        content = json.loads(path.read_bytes())  # which tells UTF-8, UTF-16 and UTF-32, with or without a mark
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file") from error
    except ValueError as error:
        raise UserError(f"{path}: no valid JSON ({error}); is the file cut short? Restore it") from error
    except RecursionError as error:
        raise UserError(f"{path}: lists within lists without end; {_EXPECTED}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, {_EXPECTED}")
    return content


def entries(path: Path, content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return one of the lists of objects in a file; UserError where it is none."""
    found = content.get(name)
    if not isinstance(found, list):
        raise UserError(f"{path}: no list {name!r}; {_EXPECTED}")
    for place, entry in enumerate(found):
        if not isinstance(entry, dict):
            raise UserError(f"{path}: entry {place} of {name!r} is a {type(entry).__name__}, no object; mend it")
    return found


def _text_of(path: Path, table: str, entry: Entry, key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise UserError(f"{path}: an entry of {table!r} has no {key} that is a str: {_shown(entry)}; mend it")
    return value


def whole_of(path: Path, table: str, entry: Entry, key: str) -> int:
    """Return a whole number that an entry must have; UserError where it has none."""
    value = whole(entry.get(key))
    if value is None:
        raise UserError(f"{path}: an entry of {table!r} has no {key} that is a int: {_shown(entry)}; mend it")
    return value


def whole(value: Any) -> int | None:
    """A whole number, which some programs write as 7.0; None for anything else."""
    if isinstance(value, bool):
        return None
    return int(value) if isinstance(value, int) or (isinstance(value, float) and value.is_integer()) else None


def _real(value: Any) -> float:
    """A number as a float; nan for what is none, and for whole numbers larger than any float."""
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan


def _id(entry: Entry) -> str:
    return str(entry.get("id"))[:40]


def _shown(entry: Entry) -> str:
    return json.dumps(entry)[:80]
