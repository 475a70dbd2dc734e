"""Pascal VOC's annotations lie in one XML file an image, with corners in whole pixels that count from 1."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from ssl_vit.data.annotations import Annotations, Raw
from ssl_vit.errors import UserError


class _Image(NamedTuple):
    file: str
    size: tuple[int, int]
    objects: list[tuple[str, list[float], bool]]  # name, corners, difficult


def is_voc(path: Path) -> bool:
    """Tell whether a path is a folder with Annotations/, or a list in its ImageSets/."""
    return (_root(path) / "Annotations").is_dir()


def _root(path: Path) -> Path:
    return path if path.is_dir() else path.parent.parent.parent


def read(path: Path) -> Annotations:
    """Read the boxes of all images of the folder, or of those in the list; classes are the names that occur, sorted.

    "difficult" objects count as COCO's crowds: not to be found, and not wrong to find.
    """
    folder = _root(path)
    images = [_read(file) for file in _files(path, folder)]
    classes = tuple(sorted({name for image in images for name, _, _ in image.objects}))
    number = {name: index for index, name in enumerate(classes)}
    found = Annotations(str(folder / "JPEGImages"), classes)
    for image in images:
        raw = [
            Raw(f"{image.file}, object {i}", corners, number[name], difficult)
            for i, (name, corners, difficult) in enumerate(image.objects, start=1)
        ]
        found.add(image.file, image.size, raw)
    return found


def _files(path: Path, folder: Path) -> list[Path]:
    if path.is_dir():
        return sorted((folder / "Annotations").glob("*.xml"))
    # Lists of one class have a second column, 1 where the class is in the image.
    lines = path.read_text(encoding="utf-8").split("\n")
    names = [line.split()[0] for line in lines if line.strip()]
    files = [folder / "Annotations" / f"{name}.xml" for name in names]
    for file in files:
        if not file.is_file():
            raise UserError(f"{path}: lists {file.stem}, but {file} is not there; mend the list")
    return files


def _read(file: Path) -> _Image:
    try:
        tree = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise UserError(f"{file}: no valid XML ({error}); is the file cut short? Restore it") from error
    try:
        size = (int(_text(tree, "size/height")), int(_text(tree, "size/width")))
        objects = [_object(entry) for entry in tree.iter("object")]
        return _Image(_text(tree, "filename"), size, objects)
    except (LookupError, ValueError) as error:
        raise UserError(f"{file}: {error}; expected Pascal VOC's filename, size and objects with a bndbox") from error


def _object(entry: ElementTree.Element) -> tuple[str, list[float], bool]:
    corners = [float(_text(entry, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
    corners = [corners[0] - 1, corners[1] - 1, corners[2], corners[3]]  # the first pixel is 1, and the last is inside
    return _text(entry, "name"), corners, entry.findtext("difficult", "0").strip() == "1"


def _text(entry: ElementTree.Element, path: str) -> str:
    text = entry.findtext(path)
    if text is None or not text.strip():
        raise LookupError(f"no {path}")
    return text.strip()
