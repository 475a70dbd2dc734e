"""Boxes that people drew: one table, whichever format they are in. Opens no image but for its size; needs no torch."""

from __future__ import annotations

import codecs
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssl_vit.data.bad import printable
from ssl_vit.data.decode import BadImage, image_size, quarter_turn
from ssl_vit.data.outlines import Outline, turned, turned_outline
from ssl_vit.errors import UserError

Size = tuple[int, int]  # (height, width), pixels

OUTSIDE, EMPTY, UNKNOWN = "outside of the image", "empty", "of an unknown class"
CUT, NUMBERS = "reaching over the edge (cut there)", "without four finite numbers"
NO_OUTLINE, BAD_OUTLINE = "without an outline", "with an outline that can't be drawn"
_SHOWN = 3  # names of each kind of broken box in a message


class Raw(NamedTuple):
    """A raw box is as its file has it, before it is checked."""

    where: str  # for messages: "0001.jpg, annotation 17"
    corners: Sequence[float]  # left, top, right, bottom, pixels
    label: int | None  # None for a class that is not in the list
    crowd: bool = False  # COCO's mark of a group that is neither to be found nor wrong to find
    area: float | None = None  # of the object, pixels²; the box's without
    outline: Outline | None = None
    fault: str | None = None  # what its reader has found wrong with it


class Objects(NamedTuple):
    """These arrays describe the n objects of one image."""

    boxes: NDArray[np.float32]  # [n, 4] left, top, right, bottom, pixels of the original image, upright
    labels: NDArray[np.int64]  # [n]
    crowd: NDArray[np.bool_]  # [n]
    areas: NDArray[np.float32]  # [n] pixels²
    outlines: tuple[Outline | None, ...]  # None everywhere where none were asked for


@dataclass
class Annotations:
    """Annotations are images with their boxes; images without any belong to them too."""

    root: str  # that `files` are relative to
    classes: tuple[str, ...]
    outlined: bool = False  # whether every object needs an outline
    files: list[str] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)  # of the upright image
    objects: list[Objects] = field(default_factory=list)
    broken: dict[str, list[str]] = field(default_factory=dict)  # kind -> where
    missing: list[str] = field(default_factory=list)  # images that are annotated and not there
    unreadable: dict[str, str] = field(default_factory=dict)  # images that can't be read, and why
    turned: list[str] = field(default_factory=list)  # images whose boxes were drawn before they were turned upright
    notes: list[str] = field(default_factory=list)  # what else was decided about the whole, a sentence each

    def __len__(self) -> int:
        return len(self.files)

    @property
    def left_out(self) -> int:
        """So many annotated images are missing or can't be read."""
        return len(self.missing) + len(self.unreadable)

    def path(self, index: int) -> str:
        """Return the path of the image to open."""
        return os.path.join(self.root, self.files[index])

    def counts(self) -> Counter[str]:
        """Count the boxes of each class, over all images."""
        labels = np.concatenate([o.labels for o in self.objects]) if self.objects else np.empty(0, np.int64)
        numbers = np.bincount(labels, minlength=len(self.classes)).tolist()
        return Counter(dict(zip(self.classes, numbers, strict=True)))

    def add(self, file: str, size: Size | None, boxes: Callable[[Size], Iterable[Raw]]) -> None:
        """Add an image and its boxes; broken ones are left out, and named in ``broken``.

        size: what the annotations say; None where they say nothing. boxes: gives them for the size of the image that
        they were drawn on. Where that is the image as it is stored, and EXIF turns it, they are turned with it.
        """
        path, turn = os.path.join(self.root, file), 0
        if not os.path.isfile(path):
            self.missing.append(file)
            return
        try:
            upright = image_size(path)
            if size is not None and size != upright:
                turn = quarter_turn(path) if size == upright[::-1] else 0
                if not turn:
                    sides = f"{upright[1]} x {upright[0]} pixels, annotated as {size[1]} x {size[0]}"
                    raise BadImage(path, sides)
        except BadImage as error:
            self.unreadable[file] = error.reason
            return
        drawn_on = upright[::-1] if turn else upright
        kept = [box for box in (self._checked(entry, drawn_on) for entry in boxes(drawn_on)) if box is not None]
        if turn:
            self.turned.append(file)
            kept = [_turned(box, turn, drawn_on) for box in kept]
        self.files.append(file)
        self.sizes.append(upright)
        self.objects.append(_table(kept))

    def _checked(self, raw: Raw, size: Size) -> Raw | None:
        kind = _fault(raw, size)
        if kind in (None, CUT) and self.outlined and raw.outline is None and not raw.crowd:
            kind = NO_OUTLINE
        if kind is not None:
            self.broken.setdefault(kind, []).append(raw.where)
        if kind not in (None, CUT):
            return None
        left, top, right, bottom = raw.corners
        corners = (max(left, 0.0), max(top, 0.0), min(right, size[1]), min(bottom, size[0]))
        return raw._replace(corners=corners, outline=self._outline(raw, corners))

    def _outline(self, raw: Raw, corners: Sequence[float]) -> Outline | None:
        """Of an object that needs one; a crowd without one is as large as its box."""
        if not self.outlined or raw.outline is not None:
            return raw.outline
        left, top, right, bottom = corners
        return (np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32),)

    def report(self) -> str:
        """Say what was left out, mended or decided, in a line for each kind with the first names; else nothing."""
        kinds = [(f"boxes {kind}", names) for kind, names in sorted(self.broken.items())]
        if self.missing:
            kinds.append(("images that are not there", self.missing))
        if self.unreadable:
            kinds.append(("images that can't be read", [f"{name} ({why})" for name, why in self.unreadable.items()]))
        if self.turned:
            kinds.append(("images annotated before EXIF turned them (their boxes are turned too)", self.turned))
        return "\n".join([*(f"{len(names)} {kind}: {first_of(names)}" for kind, names in kinds), *self.notes])


def _fault(raw: Raw, size: Size) -> str | None:
    if raw.fault is not None:
        return raw.fault
    if len(raw.corners) != 4 or not all(math.isfinite(number) for number in raw.corners):
        return NUMBERS
    if raw.label is None:
        return UNKNOWN
    left, top, right, bottom = raw.corners
    if right <= left or bottom <= top:
        return EMPTY
    if right <= 0 or bottom <= 0 or left >= size[1] or top >= size[0]:
        return OUTSIDE
    # Half a pixel over is rounding, which is nobody's fault.
    return CUT if min(left, top) < -0.5 or right > size[1] + 0.5 or bottom > size[0] + 0.5 else None


def _turned(box: Raw, turn: int, size: Size) -> Raw:
    """A box that was drawn on the stored image of `size`, where it lies on the upright one."""
    ends = turned(np.array(box.corners).reshape(2, 2), turn, size)
    outline = None if box.outline is None else turned_outline(box.outline, turn, size)
    return box._replace(corners=[*ends.min(0).tolist(), *ends.max(0).tolist()], outline=outline)


def _table(boxes: Sequence[Raw]) -> Objects:
    corners = np.array([box.corners for box in boxes], dtype=np.float32).reshape(-1, 4)
    of_boxes = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    areas = [own if box.area is None else box.area for box, own in zip(boxes, of_boxes, strict=True)]
    return Objects(
        corners,
        np.array([box.label for box in boxes], dtype=np.int64),
        np.array([box.crowd for box in boxes], dtype=bool),
        np.array(areas, dtype=np.float32),
        tuple(box.outline for box in boxes),
    )


def distinct(names: Sequence[str], where: object) -> tuple[tuple[str, ...], list[int], list[str]]:
    """Make one class of those with one name: the classes, the class of each of the names, and a note on each such.

    >>> distinct(["cat", "dog", "cat"], "data.yaml")
    (('cat', 'dog'), [0, 1, 0], ["data.yaml: 2 classes are called 'cat'; they are taken as one"])
    """
    classes = tuple(dict.fromkeys(names))
    place = {name: index for index, name in enumerate(classes)}
    notes = [
        f"{where}: {count} classes are called {name!r}; they are taken as one"
        for name, count in Counter(names).items()
        if count > 1
    ]
    return classes, [place[name] for name in names], notes


def first_of(names: Iterable[str]) -> str:
    """Write the first of some names on a line, with dots where there are more."""
    names = list(names)
    return ", ".join(printable(name) for name in names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")


def read_text(path: Path) -> str:
    """Read a text in UTF-8 or, by its first bytes, UTF-16; UserError where it is neither."""
    try:
        data = path.read_bytes()
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return data.decode("utf-16" if wide else "utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text ({error}); save it as UTF-8") from error


def open_annotations(
    path: str | os.PathLike[str], images: str | os.PathLike[str] | None = None, *, outlined: bool = False
) -> Annotations:
    """Read the boxes of any of three formats, recognised by what is there.

    - COCO: a .json file; file names are relative to `images`, by default to the folder of the file.
    - Pascal VOC: a folder with ``Annotations/*.xml`` and ``JPEGImages/``, or a list in its ``ImageSets/Main/*.txt``.
    - YOLO: a folder with ``images/`` and ``labels/``, or one in an ``images/`` beside which is a ``labels/``; names of
      the classes from ``data.yaml`` or ``classes.txt`` there or above.

    outlined: objects get the outlines that COCO and YOLO have; one without a good outline is left out. Else outlines
    are not even looked at.

    Raises:
        UserError: nothing of the kind there, a file that can't be read, or not one image.
    """
    from ssl_vit.data import annotations_coco, annotations_voc, annotations_yolo

    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; pass a COCO .json, a Pascal VOC or a YOLO folder")
    of_coco = path.suffix.lower() == ".json" and path.is_file()
    if images is not None and not of_coco:
        raise UserError(f"{path}: has its own folder of images, only a COCO .json is given another; leave {images} out")
    if of_coco:
        found = annotations_coco.read(path, Path(images) if images is not None else path.parent, outlined)
    elif annotations_voc.is_voc(path):
        found = annotations_voc.read(path, outlined)
    elif annotations_yolo.is_yolo(path):
        found = annotations_yolo.read(path, outlined)
    else:
        raise UserError(
            f"{path}: neither a COCO .json, nor a Pascal VOC folder (Annotations/, JPEGImages/), "
            f"nor a YOLO folder (images/, labels/); pass {_inside(path) or 'one of them'}"
        )
    if not found.files:
        raise UserError(f"{path}: no images: {_why_none(found)}")
    return found


def _inside(path: Path) -> str:
    """A COCO file in a folder that was given in its place, if there is one."""
    files = sorted(str(file) for file in path.glob("*.json")) if path.is_dir() else []
    return files[0] if files else ""


def _why_none(found: Annotations) -> str:
    if found.unreadable:
        shown = first_of(f"{name} ({why})" for name, why in found.unreadable.items())
        return f"{found.left_out} are annotated and none can be read: {shown}"
    if found.missing:
        return f"{found.left_out} are annotated and none is in {found.root}; name the folder of the images"
    return "none is listed; pass another file or folder"
