"""COCO's annotations lie in one JSON file: https://cocodataset.org/#format-data."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ssl_vit.data.annotations import Annotations, Polygons, Raw
from ssl_vit.errors import UserError


def read(path: Path, images: Path) -> Annotations:
    """Read the boxes of a file whose image names are relative to `images`; classes come by their numbers."""
    content = _load(path)
    tables = {name: _entries(path, content, name) for name in ("images", "annotations", "categories")}
    categories = sorted(tables["categories"], key=lambda entry: int(_of(path, "categories", entry, "id", int)))
    found = Annotations(str(images), tuple(str(_of(path, "categories", entry, "name", str)) for entry in categories))
    number = {entry["id"]: index for index, entry in enumerate(categories)}
    boxes: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in tables["annotations"]:
        boxes[_of(path, "annotations", entry, "image_id", int)].append(entry)
    seen = set()
    for entry in tables["images"]:
        key = _of(path, "images", entry, "id", int)
        if key in seen:
            raise UserError(f"{path}: two images have the id {key}; each needs its own")
        seen.add(key)
        name = _of(path, "images", entry, "file_name", str)
        size = (_of(path, "images", entry, "height", int), _of(path, "images", entry, "width", int))
        found.add(name, size, [_raw(name, box, number) for box in boxes.get(key, [])])
    strangers = sorted(boxes.keys() - seen)
    if strangers:
        kind = "of an image that is not listed"
        found.broken[kind] = [f"annotation {box.get('id')} of image {key}" for key in strangers for box in boxes[key]]
    return found


def _raw(name: str, entry: Mapping[str, Any], number: Mapping[int, int]) -> Raw:
    box = entry.get("bbox")
    corners: list[float] = []
    if isinstance(box, list) and len(box) == 4 and all(isinstance(value, int | float) for value in box):
        corners = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    area, crowd = entry.get("area"), bool(entry.get("iscrowd", 0))
    outline = _polygons(entry.get("segmentation"))
    if crowd and outline is None and corners:
        left, top, right, bottom = corners
        outline = (np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32),)
    return Raw(
        f"{name}, annotation {entry.get('id')}",
        corners,
        number.get(entry.get("category_id", -1)),
        crowd,
        float(area) if isinstance(area, int | float) else None,
        outline,
    )


def _polygons(segmentation: Any) -> Polygons | None:
    """Outlines; run lengths, which COCO has for crowds alone, are left out: a crowd is then as large as its box."""
    if not isinstance(segmentation, list) or not segmentation:
        return None
    return tuple(np.asarray(ring, dtype=np.float32).reshape(-1, 2) for ring in segmentation)


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no valid JSON ({error}); is the file cut short? Restore it") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected COCO's images, annotations, categories")
    return content


def _entries(path: Path, content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    entries = content.get(name)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path}: no list {name!r}; expected COCO's images, annotations, categories")
    return entries


def _of(path: Path, table: str, entry: Mapping[str, Any], key: str, kind: type) -> Any:
    value = entry.get(key)
    if not isinstance(value, kind):
        shown = json.dumps(entry)[:80]
        raise UserError(f"{path}: an entry of {table!r} has no {key} that is a {kind.__name__}: {shown}; mend it")
    return value
