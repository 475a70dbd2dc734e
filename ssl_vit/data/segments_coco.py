"""COCO's annotations are a source of segments: panoptic ones, and outlines of single objects on a background."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssl_vit.data.annotations import Annotations, first_of
from ssl_vit.data.annotations_coco import Entry, classes_of, entries, files_of, load, there, whole, whole_of
from ssl_vit.data.caps import MAX_PIXELS
from ssl_vit.data.decode import BadImage, image_size, quarter_turn
from ssl_vit.data.outlines import Runs, drawn
from ssl_vit.data.segments import NOWHERE, Segments, SegmentSource
from ssl_vit.errors import UserError

BACKGROUND = "background"
MOST = 32_000  # segments an image
_GONE, _BARE = "that are not there", "without an annotation"
_NO_PNG, _NO_LIST = "whose PNG is not there", "whose list of segments is broken"


class Listed(NamedTuple):
    """A segment stands in the list of its image."""

    number: int  # in the PNG
    label: int | None  # its class; None for one that is not known
    crowd: bool


@dataclass
class PanopticSource(SegmentSource):
    """COCO's panoptic annotations: a PNG an image, whose colours are numbers, and a list of what these stand for."""

    json: Path = field(default_factory=Path)
    masks: list[Path] = field(default_factory=list)
    segments: list[tuple[Listed, ...]] = field(default_factory=list)

    def counts(self) -> Mapping[str, int]:
        """Count the segments of each class."""
        return Counter(self.names[each.label] for own in self.segments for each in own if each.label is not None)

    def mask(self, index: int) -> Path:
        """Return a PNG's file."""
        return self.masks[index]

    def beside(self) -> list[Path]:
        """List the JSON and the PNGs."""
        return [self.json, *self.masks]

    def stored(self, index: int, size: tuple[int, int]) -> Segments:
        """Read a PNG; what has an unknown class, or the number 0, counts for nothing."""
        colours = _colours(self.masks[index])
        numbers, places = np.unique(colours, return_inverse=True)
        place = dict.fromkeys([0], NOWHERE)
        kept = [each for each in self.segments[index] if each.label is not None]
        place |= {each.number: NOWHERE for each in self.segments[index]}
        place |= {each.number: i for i, each in enumerate(kept)}
        strange = [number for number in numbers.tolist() if number not in place]
        if strange:
            raise BadImage("", f"segment {strange[0]} of {self.masks[index].name} is not in the list of its segments")
        found = np.array([place[number] for number in numbers.tolist()], np.int16)
        labels = np.array([each.label for each in kept], np.int64)
        return Segments(found[places.reshape(colours.shape)], labels, np.array([each.crowd for each in kept], bool))


def _colours(path: Path) -> NDArray[np.int64]:
    """The numbers [H, W] that the colours of a PNG are: red + 256 green + 65,536 blue. Raises BadImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG",)) as image:
                if image.mode not in ("RGB", "RGBA"):
                    raise BadImage("", f"{path.name} is of {image.mode}; expected RGB, which numbers segments")
                if image.width * image.height > MAX_PIXELS:
                    raise BadImage("", f"{path.name} has more than {MAX_PIXELS:.0f} pixels")
                bands = np.array(image).astype(np.int64)
    except BadImage:
        raise
    except Exception as error:  # on hostile bytes Pillow raises nearly anything
        raise BadImage("", f"{path.name}: {' '.join(str(error).split()) or type(error).__name__}") from error
    numbers: NDArray[np.int64] = bands[..., 0] + 256 * bands[..., 1] + 65_536 * bands[..., 2]
    return numbers


def is_panoptic(path: Path) -> bool:
    """Whether a COCO file has panoptic annotations; UserError where it is no COCO file."""
    return any("segments_info" in entry for entry in entries(path, load(path), "annotations"))


def open_panoptic(path: Path, images: Path) -> PanopticSource:
    """Read a panoptic file; its PNGs lie in a folder beside it that is called as it is, else where it lies."""
    content = load(path)
    tables = {name: entries(path, content, name) for name in ("images", "annotations", "categories")}
    names, number, notes = classes_of(path, tables["categories"])
    single = {number[entry["id"]] for entry in tables["categories"] if entry.get("isthing", 1)}
    things = tuple(place in single for place in range(len(names)))
    source = PanopticSource(images, names, things, panoptic=True, notes=notes, json=path)
    folder = path.with_suffix("") if path.with_suffix("").is_dir() else path.parent
    annotated = _annotated(path, tables["annotations"])
    for name, (size, keys) in files_of(path, tables["images"], source.notes).items():
        own = next((annotated.pop(key) for key in keys if key in annotated), None)
        _add(source, there(images, name), size, own, folder, number)
    if annotated:
        shown = first_of(str(entry.get("file_name", key)) for key, entry in annotated.items())
        source.notes.append(f"{len(annotated)} annotations of images that are not listed are left out: {shown}")
    return source


def _annotated(path: Path, annotations: Sequence[Entry]) -> dict[int, Entry]:
    """The annotation of each image, by the image's number."""
    found = dict[int, Entry]()
    for entry in annotations:
        key = whole_of(path, "annotations", entry, "image_id")
        if found.setdefault(key, entry) is not entry:
            raise UserError(f"{path}: image {str(key)[:40]} has two panoptic annotations; each needs one, remove one")
    return found


def _add(
    source: PanopticSource,
    file: str,
    size: tuple[int, int] | None,
    annotation: Entry | None,
    folder: Path,
    number: Mapping[int, int],
) -> None:
    """Add an image, or what is wrong with it."""
    image, png = source.root / file, folder / str((annotation or {}).get("file_name"))
    listed = _listed((annotation or {}).get("segments_info"), number)
    if annotation is None or listed is None:
        source.left_out[file] = _BARE if annotation is None else _NO_LIST
        return
    if not image.is_file() or not png.is_file():
        source.left_out[file] = _NO_PNG if image.is_file() else _GONE
        return
    try:
        upright = image_size(str(image))
        if size not in (None, upright) and not (size == upright[::-1] and quarter_turn(str(image))):
            raise BadImage("", "that have another size than is annotated")
    except BadImage as error:
        source.left_out[file] = error.reason
        return
    unknown = [each.number for each in listed if each.label is None]
    if unknown:
        source.notes.append(f"{len(unknown)} segments of {file} are of an unknown class and count for nothing")
    source.files.append(file)
    source.masks.append(png)
    source.segments.append(listed)


def _listed(segments: Any, number: Mapping[int, int]) -> tuple[Listed, ...] | None:
    """The segments of an image; None where their list is broken."""
    if not isinstance(segments, list) or not 0 < len(segments) <= MOST:
        return None
    found = []
    for entry in segments:
        key = whole(entry.get("id")) if isinstance(entry, dict) else None
        if key is None:
            return None
        label = whole(entry.get("category_id"))
        found.append(Listed(key, None if label is None else number.get(label), entry.get("iscrowd") in (1, True, "1")))
    return tuple(found)


@dataclass
class InstanceSource(SegmentSource):
    """Outlines of objects divide an image among them, smaller ones in front; the rest is background."""

    annotations: Annotations = field(default_factory=lambda: Annotations("", ()))
    json: Path = field(default_factory=Path)

    def counts(self) -> Mapping[str, int]:
        """Count the objects of each class; the background is in every image."""
        counts = {name: count for name, count in self.annotations.counts().items() if count}
        return {BACKGROUND: len(self)} | counts

    def mask(self, index: int) -> Path:
        """Return the JSON."""
        return self.json

    def beside(self) -> list[Path]:
        """List the JSON."""
        return [self.json]

    def stored(self, index: int, size: tuple[int, int]) -> Segments:
        """Draw the outlines, the largest first; those of crowds lie behind all others."""
        objects, annotated = self.annotations.objects[index], self.annotations.sizes[index]
        if annotated != size:
            sides = f"{size[1]} x {size[0]} pixels, annotated as {annotated[1]} x {annotated[0]}"
            raise BadImage("", sides)
        if len(objects.labels) >= MOST:
            raise BadImage("", f"more than {MOST} objects")
        map_ = np.zeros(size, np.int16)
        masks = [
            outline.mask() if isinstance(outline, Runs) else drawn(outline, max(size), size, (1, 1), (0, 0), False)
            for outline in objects.outlines
        ]
        areas = [int(mask.sum()) for mask in masks]
        for place in sorted(range(len(masks)), key=lambda i: (not objects.crowd[i], -areas[i])):
            map_[masks[place][: size[0], : size[1]]] = place + 1
        behind = self.names.index(BACKGROUND)
        labels = objects.labels + (BACKGROUND not in self.annotations.classes)
        return Segments(map_, np.append(behind, labels), np.append(False, objects.crowd))


def of_instances(path: Path, annotations: Annotations) -> InstanceSource:
    """Make a source of outlined annotations; a class that is called "background" is what lies between the objects."""
    named = BACKGROUND in annotations.classes
    names = annotations.classes if named else (BACKGROUND, *annotations.classes)
    things = tuple(name != BACKGROUND for name in names)
    source = InstanceSource(Path(annotations.root), names, things, panoptic=True, annotations=annotations, json=path)
    source.files = list(annotations.files)
    source.left_out = dict.fromkeys(annotations.missing, _GONE) | dict(annotations.unreadable)
    return source


def images_of(path: Path, images: str | os.PathLike[str] | None) -> Path:
    """The folder that the names in a COCO file are relative to: the one that is given, else the file's."""
    return path.parent if images is None else Path(images)
