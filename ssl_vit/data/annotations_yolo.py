"""YOLO's annotations lie in one text file an image, a line an object, in shares of the image's sides.

A line is "class x y width height", or "class x1 y1 x2 y2 x3 y3 …" for a polygon.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from ssl_vit.data.annotations import BAD_OUTLINE, Annotations, Raw, Size, distinct, read_text
from ssl_vit.data.outlines import polygons
from ssl_vit.data.source import EXTENSIONS
from ssl_vit.errors import UserError

MOST_CLASSES = 20_000  # where no names say how many there are; the largest vocabularies of detectors have 13,000
_LARGEST, _DEEPEST = 1 << 20, 50  # bytes of a file of names, and lists within lists in it
_EXPECTED = "expected: class x y width height, or class x1 y1 x2 y2 x3 y3 … for a polygon"
_LOADER: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # which make nothing but texts, lists and mappings

Row = tuple[int, list[float]]


class _Names(NamedTuple):
    file: Path
    names: list[str]
    keypoints: bool = False  # behind each box, as for poses


def is_yolo(path: Path) -> bool:
    """Tell whether a folder has images/ and labels/, or is one of images with its counterpart under labels/."""
    return path.is_dir() and _labels(_images(path)) is not None


def _images(path: Path) -> Path:
    return path / "images" if (path / "images").is_dir() else path


def _labels(images: Path) -> Path | None:
    """The folder in which "images" in a path is replaced by "labels", as YOLO's own loaders do."""
    parts = list(images.absolute().parts)
    if "images" not in parts:
        return None
    parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    folder = Path(*parts)
    return folder if folder.is_dir() else None


def read(path: Path, outlined: bool = False) -> Annotations:
    """Read the images and boxes of the folder; one without a file of labels has none. Unnamed classes are numbers."""
    images = _images(path)
    labels = _labels(images)
    assert labels is not None
    listed = _names(path, labels)
    files = sorted(file for file in images.rglob("*") if file.suffix[1:].lower() in EXTENSIONS)
    texts = {file: labels / file.relative_to(images).with_suffix(".txt") for file in files}
    rows = {file: _rows(text, listed) for file, text in texts.items()}
    where, names = (listed.file, listed.names) if listed else (path, _numbers(texts, rows))
    classes, places, notes = distinct(names, where)
    found = Annotations(str(images), classes, outlined, notes=notes)
    for file, own in rows.items():
        name = str(file.relative_to(images))
        found.add(name, None, partial(_raw, name, own, places, outlined))
    found.missing += _alone(labels, set(texts.values()))
    bare = [str(file.relative_to(images)) for file, text in texts.items() if not text.is_file()]
    if 2 * len(bare) > len(files):
        found.notes.append(f"{len(bare)} of {len(files)} images have no file of labels, as {bare[0]}: nothing is there")
    return found


def _alone(labels: Path, known: set[Path]) -> list[str]:
    """Files of labels without an image."""
    texts = sorted(file for file in labels.rglob("*.txt") if file not in known and file.name != "classes.txt")
    return [f"that of {file.relative_to(labels)}" for file in texts]


def _raw(name: str, rows: Sequence[Row], places: Sequence[int], outlined: bool, size: Size) -> Iterator[Raw]:
    scale = np.array([size[1], size[0]])
    for index, (label, shares) in enumerate(rows):
        outline, fault = None, None
        if len(shares) == 4:
            (x, y), (w, h) = (np.array(pair) * scale for pair in (shares[:2], shares[2:]))
            corners = [float(corner) for corner in (x - w / 2, y - h / 2, x + w / 2, y + h / 2)]
        else:
            points = np.array(shares).reshape(-1, 2) * scale
            corners = [*points.min(0).tolist(), *points.max(0).tolist()]
            outline = polygons([points.ravel().tolist()], size) if outlined else None
            fault = BAD_OUTLINE if outlined and outline is None else None
        known = 0 <= label < len(places)
        yield Raw(f"{name}, line {index + 1}", corners, places[label] if known else None, outline=outline, fault=fault)


def _rows(file: Path, listed: _Names | None) -> list[Row]:
    """The class and the numbers of each line: four of a box, or those of a polygon."""
    if not file.is_file():
        return []
    rows = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        words = line.split()
        try:
            if words:
                label, *shares = (float(word) for word in words)
                if listed is not None and listed.keypoints:
                    shares = shares[:4]
                if not (len(shares) == 4 or (len(shares) >= 6 and len(shares) % 2 == 0)):
                    raise ValueError(f"{len(words)} columns")
                if not label.is_integer():
                    raise ValueError(f"a class of {words[0][:20]}")
                rows.append((int(label), shares))
        except ValueError as error:
            raise UserError(f"{file}, line {number}: {error}; {_EXPECTED}") from error
    return rows


def _numbers(texts: dict[Path, Path], rows: dict[Path, list[Row]]) -> list[str]:
    """Names for classes that have none."""
    largest = max(((label, file) for file, own in rows.items() for label, _ in own), default=None)
    if largest is None:
        return []
    if largest[0] >= MOST_CLASSES:
        raise UserError(
            f"{texts[largest[1]]}: a class {str(largest[0])[:20]}, and no data.yaml or classes.txt that names so many; "
            f"mend the line, or name the classes (without names, they count from 0 to {MOST_CLASSES - 1})"
        )
    return [str(number) for number in range(largest[0] + 1)]


def _names(path: Path, labels: Path) -> _Names | None:
    """From data.yaml ("names", a list or numbered) or classes.txt, in the folder, up to three above, or with labels."""
    for folder in [path.absolute(), *path.absolute().parents[:3], labels]:
        for file in sorted([*folder.glob("data.y*ml"), *folder.glob("dataset.y*ml")]):
            return _yaml_names(file)
        if (folder / "classes.txt").is_file():
            lines = _read(folder / "classes.txt").strip().splitlines()
            return _Names(folder / "classes.txt", [line.strip() for line in lines])
    return None


def _yaml_names(file: Path) -> _Names:
    """Every name is the text that is written: "no" is no False. Aliases, which stand for any amount, are refused."""
    text = _read(file)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST or isinstance(event, yaml.AliasEvent):
                raise ValueError("lists within lists without end" if depth > _DEEPEST else "aliases are not read")
        content = yaml.load(text, Loader=_LOADER)
        names = content["names"]
        if isinstance(names, dict):
            numbered = {int(number): name for number, name in names.items()}
            names = [numbered[number] for number in range(len(numbered))]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("not a list of texts")
        return _Names(file, [name.strip() for name in names], "kpt_shape" in content)
    except (yaml.YAMLError, LookupError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: no list of names ({said}); expected: names: [cat, dog]") from error


def _read(file: Path) -> str:
    if file.stat().st_size > _LARGEST:
        raise UserError(f"{file}: {file.stat().st_size:,} bytes, too large for a list of names; write the names alone")
    return read_text(file)
