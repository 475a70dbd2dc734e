"""Pascal VOC's annotations lie in one XML file an image, with corners in whole pixels that count from 1."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePath
from typing import NamedTuple
from xml.etree import ElementTree

from ssl_vit.data.annotations import Annotations, Raw, Size, first_of, read_text
from ssl_vit.data.source import EXTENSIONS
from ssl_vit.errors import UserError


class _Image(NamedTuple):
    stem: str  # of the XML file, with the folder within Annotations/
    hint: str  # what the file says that its image is called
    size: Size | None
    objects: list[tuple[str, list[float], bool]]  # name, corners, difficult


def is_voc(path: Path) -> bool:
    """Tell whether a path is a folder with Annotations/, or a list in its ImageSets/."""
    return (_root(path) / "Annotations").is_dir()


def _root(path: Path) -> Path:
    return path if path.is_dir() else path.parent.parent.parent


def read(path: Path, outlined: bool = False) -> Annotations:
    """Read the boxes of all images of the folder, or of those in the list; classes are the names that occur, sorted.

    An image is the file of JPEGImages/ that is called as its XML file is; the name inside is a hint, for where there
    is none or more than one. "difficult" objects count as COCO's crowds: not to be found, and not wrong to find.
    """
    folder = _root(path)
    images = [_read(file, folder / "Annotations") for file in _files(path, folder)]
    classes = tuple(sorted({name for image in images for name, _, _ in image.objects}))
    number = {name: index for index, name in enumerate(classes)}
    found = Annotations(str(folder / "JPEGImages"), classes, outlined)
    stems, others = _stems(folder / "JPEGImages"), list[str]()
    for image in images:
        file = _file(image, stems, folder / "JPEGImages")
        own = os.path.splitext(os.path.basename(file).lower())
        if image.hint and os.path.splitext(image.hint)[0].lower() not in own:
            others.append(f"{image.stem}.xml ({image.hint}, taken: {file})")
        found.add(file, image.size, partial(_raw, file, image, number))
    bare = sorted({file for each in stems.values() for file in each} - {*found.files, *found.unreadable})
    if bare and path.is_dir():
        found.notes.append(f"{len(bare)} images have no file in Annotations/ and are left out: {first_of(bare)}")
    if others:
        found.notes.append(f"{len(others)} files name another image than their own: {first_of(others)}")
    return found


def _raw(file: str, image: _Image, number: Mapping[str, int], size: Size) -> Iterator[Raw]:
    """The boxes of an image; they are in pixels, whatever its size is."""
    for i, (name, corners, difficult) in enumerate(image.objects, start=1):
        yield Raw(f"{file}, object {i}", corners, number[name], difficult)


def _stems(folder: Path) -> Mapping[str, list[str]]:
    """The images of the folder and of those in it, by their names without the ending, in small letters."""
    found: dict[str, list[str]] = defaultdict(list)
    for place, _, names in os.walk(folder):
        for name in sorted(names):
            relative = os.path.relpath(os.path.join(place, name), folder)
            stem, ending = os.path.splitext(relative)
            if ending[1:].lower() in EXTENSIONS:
                found[stem.lower()].append(relative)
                found[relative.lower()].append(relative)  # for a.jpg.xml
    return found


def _file(image: _Image, stems: Mapping[str, list[str]], folder: Path) -> str:
    """The file of an image: its XML's own name, with the hint's ending or case before others."""
    own = stems.get(image.stem.lower(), [])
    exact = [file for file in own if file == image.stem or os.path.splitext(file)[0] == image.stem] or own
    if exact:
        return image.hint if image.hint in exact else exact[0]
    hinted = stems.get(image.hint.lower(), [])
    return hinted[0] if hinted and image.hint not in hinted else image.hint or image.stem


def _files(path: Path, folder: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in (folder / "Annotations").rglob("*") if file.suffix.lower() == ".xml")
    # Lists of one class have a second column, 1 where the class is in the image.
    names = [line.split()[0] for line in read_text(path).splitlines() if line.strip()]
    files = [folder / "Annotations" / f"{name}.xml" for name in dict.fromkeys(names)]
    for file in files:
        if not file.is_file():
            raise UserError(f"{path}: lists {file.stem}, but {file} is not there; mend the list")
    return files


def _read(file: Path, folder: Path) -> _Image:
    try:
        tree = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise UserError(f"{file}: no valid XML ({error}); is the file cut short? Restore it") from error
    if tree.tag != "annotation":
        raise UserError(f"{file}: begins with <{tree.tag[:40]}>, expected Pascal VOC's <annotation>; remove the file")
    try:
        objects = [_object(entry) for entry in tree.iter("object")]
        stem = str(file.relative_to(folder).with_suffix(""))
        return _Image(
            stem, PurePath(tree.findtext("filename", "").strip().replace("\\", "/")).name, _size(tree), objects
        )
    except (LookupError, ValueError, OverflowError) as error:
        raise UserError(f"{file}: {error}; expected Pascal VOC's size and objects with a name and a bndbox") from error


def _size(tree: ElementTree.Element) -> Size | None:
    """The size that is said; None where it is not, or 0 as many programs write."""
    height, width = (int(float(tree.findtext(f"size/{side}", "").strip() or 0)) for side in ("height", "width"))
    return (height, width) if height or width else None


def _object(entry: ElementTree.Element) -> tuple[str, list[float], bool]:
    corners = [float(_text(entry, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
    corners = [corners[0] - 1, corners[1] - 1, corners[2], corners[3]]  # the first pixel is 1, and the last is inside
    return _text(entry, "name"), corners, entry.findtext("difficult", "0").strip() == "1"


def _text(entry: ElementTree.Element, path: str) -> str:
    text = entry.findtext(path)
    if text is None or not text.strip():
        raise LookupError(f"no {path}")
    return text.strip()
