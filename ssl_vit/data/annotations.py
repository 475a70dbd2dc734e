"""Boxes that people drew: one table, whichever format they are in. Opens no image but for its size; needs no torch."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssl_vit.data.bad import printable
from ssl_vit.errors import UserError

Polygons = tuple[NDArray[np.float32], ...]  # each [n, 2] (x, y), pixels

OUTSIDE, EMPTY, UNKNOWN = "outside of the image", "empty", "of an unknown class"
CUT, NUMBERS = "reaching over the edge (cut there)", "without four finite numbers"
_SHOWN = 3  # names of each kind of broken box in a message


class Raw(NamedTuple):
    """A box stands here as its file has it, before it is checked."""

    where: str  # for messages: "0001.jpg, annotation 17"
    corners: Sequence[float]  # left, top, right, bottom, pixels
    label: int | None  # None for a class that is not in the list
    crowd: bool = False  # COCO's mark of a group that is neither to be found nor wrong to find
    area: float | None = None  # of the object, pixels²; the box's without
    outline: Polygons | None = None


class Objects(NamedTuple):
    """The arrays describe the n objects of one image; which of them are crowds, too."""

    boxes: NDArray[np.float32]  # [n, 4] left, top, right, bottom, pixels of the original image
    labels: NDArray[np.int64]  # [n]
    crowd: NDArray[np.bool_]  # [n]
    areas: NDArray[np.float32]  # [n] pixels²
    outlines: tuple[Polygons | None, ...]


@dataclass
class Annotations:
    """Annotations are images with their boxes; images without any belong to them too."""

    root: str  # that `files` are relative to
    classes: tuple[str, ...]
    files: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (height, width), pixels
    objects: list[Objects] = field(default_factory=list)
    broken: dict[str, list[str]] = field(default_factory=dict)  # kind -> where
    missing: list[str] = field(default_factory=list)  # images that are annotated and not there

    def __len__(self) -> int:
        return len(self.files)

    def path(self, index: int) -> str:
        """Return the path of the image to open."""
        return os.path.join(self.root, self.files[index])

    def counts(self) -> Counter[str]:
        """Count the boxes of each class, over all images."""
        labels = np.concatenate([o.labels for o in self.objects]) if self.objects else np.empty(0, np.int64)
        return Counter({name: int((labels == i).sum()) for i, name in enumerate(self.classes)})

    def add(self, file: str, size: tuple[int, int], raw: Iterable[Raw]) -> None:
        """Add an image and its boxes; broken ones are left out, and named in ``broken``."""
        if not os.path.isfile(os.path.join(self.root, file)):
            self.missing.append(file)
            return
        kept = [box for box in (self._checked(entry, size) for entry in raw) if box is not None]
        self.files.append(file)
        self.sizes.append(size)
        self.objects.append(_table(kept))

    def _checked(self, raw: Raw, size: tuple[int, int]) -> Raw | None:
        kind = _fault(raw, size)
        if kind is not None:
            self.broken.setdefault(kind, []).append(raw.where)
        if kind not in (None, CUT):
            return None
        left, top, right, bottom = raw.corners
        corners = (max(left, 0.0), max(top, 0.0), min(right, size[1]), min(bottom, size[0]))
        return raw._replace(corners=corners)

    def report(self) -> str:
        """Say what was left out or mended, in a line for each kind with the first names; empty where nothing was."""
        kinds = [(f"boxes {kind}", names) for kind, names in sorted(self.broken.items())]
        if self.missing:
            kinds.append(("images that are not there", self.missing))
        return "\n".join(
            f"{len(names)} {kind}: {', '.join(printable(name) for name in names[:_SHOWN])}"
            + (" …" if len(names) > _SHOWN else "")
            for kind, names in kinds
        )


def _fault(raw: Raw, size: tuple[int, int]) -> str | None:
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


def open_annotations(path: str | os.PathLike[str], images: str | os.PathLike[str] | None = None) -> Annotations:
    """Read the boxes of any of three formats, recognised by what is there.

    - COCO: a .json file; file names are relative to `images`, by default to the folder of the file.
    - Pascal VOC: a folder with ``Annotations/*.xml`` and ``JPEGImages/``, or a list in its ``ImageSets/Main/*.txt``.
    - YOLO: a folder with ``images/`` and ``labels/``, or one in an ``images/`` beside which is a ``labels/``; names of
      the classes from ``data.yaml`` or ``classes.txt`` there or above.

    Raises:
        UserError: nothing of the kind there, a file that can't be read, or not one image.
    """
    from ssl_vit.data import annotations_coco, annotations_voc, annotations_yolo

    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; pass a COCO .json, a Pascal VOC or a YOLO folder")
    if path.suffix == ".json":
        found = annotations_coco.read(path, Path(images) if images is not None else path.parent)
    elif annotations_voc.is_voc(path):
        found = annotations_voc.read(path)
    elif annotations_yolo.is_yolo(path):
        found = annotations_yolo.read(path)
    else:
        raise UserError(
            f"{path}: neither a COCO .json, nor a Pascal VOC folder (Annotations/, JPEGImages/), "
            "nor a YOLO folder (images/, labels/); pass one of them"
        )
    if not found.files:
        where = f"{len(found.missing)} are annotated and none is in {found.root}" if found.missing else "none is listed"
        raise UserError(f"{path}: no images: {where}; name the folder of the images")
    return found
