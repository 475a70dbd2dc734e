"""YOLO's annotations lie in one text file an image, a line "class x y width height" a box, in shares of the image."""

from __future__ import annotations

from pathlib import Path

import yaml

from ssl_vit.data.annotations import Annotations, Raw
from ssl_vit.data.decode import BadImage, image_size
from ssl_vit.data.sources import EXTENSIONS
from ssl_vit.errors import UserError


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


def read(path: Path) -> Annotations:
    """Read the images and boxes of the folder; one without a file of labels has none. Unnamed classes are numbers."""
    images = _images(path)
    labels = _labels(images)
    assert labels is not None
    files = sorted(file for file in images.rglob("*") if file.suffix[1:].lower() in EXTENSIONS)
    lines = {file: _lines(labels / file.relative_to(images).with_suffix(".txt")) for file in files}
    names = _names(path) or [
        str(i) for i in range(1 + max((box[0] for rows in lines.values() for box in rows), default=0))
    ]
    found = Annotations(str(images), tuple(names))
    for file, rows in lines.items():
        name = str(file.relative_to(images))
        try:
            height, width = image_size(str(file))
        except BadImage as error:
            found.broken.setdefault("in images that can't be read", []).append(f"{name} ({error.reason})")
            continue
        found.add(
            name, (height, width), [_raw(name, i, row, (height, width), len(names)) for i, row in enumerate(rows)]
        )
    return found


def _raw(name: str, index: int, row: tuple[int, list[float]], size: tuple[int, int], classes: int) -> Raw:
    label, (x, y, w, h) = row
    height, width = size
    corners = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
    return Raw(f"{name}, line {index + 1}", corners, label if 0 <= label < classes else None)


def _lines(file: Path) -> list[tuple[int, list[float]]]:
    if not file.is_file():
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not text ({error}); expected lines of: class x y width height") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        try:
            if words:
                label, *box = int(words[0]), *(float(word) for word in words[1:])
                if len(box) != 4:
                    raise ValueError(f"{len(words)} columns")
                rows.append((label, box))
        except ValueError as error:
            raise UserError(f"{file}, line {number}: {error}; expected: class x y width height") from error
    return rows


def _names(path: Path) -> list[str] | None:
    """From data.yaml ("names", a list or numbered) or classes.txt, in the folder or up to three above."""
    for folder in [path.absolute(), *path.absolute().parents[:3]]:
        for file in sorted([*folder.glob("data.y*ml"), *folder.glob("dataset.y*ml")]):
            return _yaml_names(file)
        if (folder / "classes.txt").is_file():
            return (folder / "classes.txt").read_text(encoding="utf-8").strip().splitlines()
    return None


def _yaml_names(file: Path) -> list[str]:
    try:
        names = yaml.safe_load(file.read_text(encoding="utf-8"))["names"]
        if isinstance(names, dict):
            names = [names[number] for number in range(len(names))]
        return [str(name) for name in names]
    except (yaml.YAMLError, LookupError, TypeError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{file}: no list of names ({said}); expected: names: [cat, dog]") from error
