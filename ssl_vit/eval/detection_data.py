"""What a detector is trained and scored on: two sets of boxes that fit together, and the size of the canvas."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ssl_vit.backbones.backbone import BackboneInfo
from ssl_vit.data.annotations import (
    BAD_OUTLINE,
    EMPTY,
    NO_OUTLINE,
    NUMBERS,
    OUTSIDE,
    UNKNOWN,
    Annotations,
    Size,
    first_of,
    open_annotations,
)
from ssl_vit.data.inventory import Known, files_known_by
from ssl_vit.errors import UserError
from ssl_vit.settings import MAX_BAD

MOST = 640  # pixels a side where nothing is asked for
COARSEST = 32  # stride of the coarsest map of a pyramid network
_SHOWN = 5  # classes in a message

log = logging.getLogger("ssl_vit")


def open_boxes(
    path: Path,
    images: str,
    side: str,
    *,
    outlined: bool = False,
    max_bad: float = MAX_BAD,
    needs: str = "a detector of masks needs one for each, choose --detector faster_rcnn",
) -> Annotations:
    """The annotations of one side ("train", "val") are read; what was left out goes to the log.

    outlined: for what learns masks, and `needs` says why and what to do else. max_bad: the share of the images that may
    be missing or unreadable, and of the objects that may lack an outline.

    Raises:
        UserError: nothing readable there, more than `max_bad` of it left out, or not one box to learn or find.
    """
    found, where = open_annotations(path, None if images == "auto" else images, outlined=outlined), f"--{side} {path}"
    for line in found.report().splitlines():
        log.warning("%s: %s", where, line)
    hint = f"name their folder (--{side}-images), " if path.suffix == ".json" else ""
    _check_shares(found, where, max_bad, hint, needs)
    boxes = sum(len(objects.labels) for objects in found.objects)
    _check_boxes(found, boxes, where, max_bad)
    if not boxes:
        raise UserError(f"{where}: {len(found)} images and not one box; give images with boxes")
    if all(objects.crowd.all() for objects in found.objects):
        raise UserError(
            f"{where}: all {boxes} boxes are crowds (COCO's iscrowd, Pascal VOC's difficult), which are neither learnt "
            "nor looked for; give boxes of single objects"
        )
    return found


def _check_shares(found: Annotations, where: str, max_bad: float, hint: str, needs: str) -> None:
    """UserError where too many images or outlines were left out."""
    annotated, limit = len(found) + found.left_out, f"more than the {max_bad:.1%} that --max-bad allows"
    if found.left_out > max_bad * annotated:
        names = [f"{name} (not there)" for name in found.missing]
        names += [f"{name} ({reason})" for name, reason in found.unreadable.items()]
        raise UserError(
            f"{where}: {found.left_out} of {annotated} annotated images ({found.left_out / annotated:.1%}) are missing "
            f"or can't be read, {limit}: {first_of(names)}; restore them, {hint}or raise --max-bad"
        )
    bare = [name for kind in (NO_OUTLINE, BAD_OUTLINE) for name in found.broken.get(kind, [])]
    objects = sum(len(each.labels) for each in found.objects) + len(bare)
    if len(bare) > max_bad * objects:
        raise UserError(
            f"{where}: {len(bare)} of {objects} objects have no outline that can be drawn, {limit}: {first_of(bare)}; "
            f"{needs}"
        )


def _check_boxes(found: Annotations, boxes: int, where: str, max_bad: float) -> None:
    """UserError where so many boxes are wrong that it is their writer's doing."""
    wrong = {kind: found.broken[kind] for kind in (EMPTY, OUTSIDE, NUMBERS, UNKNOWN) if kind in found.broken}
    count = sum(map(len, wrong.values()))
    if boxes and count > max_bad * (count + boxes):
        kind, names = max(wrong.items(), key=lambda item: len(item[1]))
        raise UserError(
            f"{where}: {count} of {count + boxes} boxes ({count / (count + boxes):.1%}) can't be used, more than the "
            f"{max_bad:.1%} that --max-bad allows; {len(names)} of them are {kind}: {first_of(names)}; mend them, or "
            "raise --max-bad"
        )
    if boxes and max(float(objects.boxes.max(initial=0)) for objects in found.objects) <= 1:
        raise UserError(
            f"{where}: every box lies within the first pixel of its image; give coordinates in pixels, not in shares "
            "of the sides"
        )


def numbered_alike(val: Annotations, train: Annotations) -> Annotations:
    """Val gets the numbers that train gives to classes of the same names; it need not have all of them.

    Raises:
        UserError: a box of a class that train doesn't have.
    """
    for name, count in val.counts().items():
        if count and name not in train.classes:
            known = ", ".join(train.classes[:_SHOWN]) + (" …" if len(train.classes) > _SHOWN else "")
            raise UserError(
                f"--val: {count} boxes of {name!r}, which --train doesn't have ({known}); give both one list"
            )
    places = {name: place for place, name in enumerate(train.classes)}
    number = np.array([places.get(name, -1) for name in val.classes], dtype=np.int64)
    objects = [each._replace(labels=number[each.labels]) for each in val.objects]
    return replace(val, classes=train.classes, objects=objects)


def canvas(info: BackboneInfo, sizes: Sequence[Size], asked: int | str) -> int:
    """The canvas that images are put on has so many pixels a side; UserError for a size that the backbone can't take.

    sizes: (height, width) of images. "auto": the median of their longer sides, as a multiple that the backbone takes.
    """
    if not info.any_size:
        if info.size[0] != info.size[1] or info.size[0] % COARSEST:
            raise UserError(
                f"{info.name}: takes images of {info.size[1]} x {info.size[0]} pixels alone, a detector needs squares "
                f"of a multiple of {COARSEST}; choose a backbone that takes any size"
            )
        if asked not in ("auto", info.size[0]):
            raise UserError(f"--size {asked}: {info.name} takes {info.size[0]} pixels alone; leave --size out")
        return info.size[0]
    unit = math.lcm(COARSEST, info.multiple)
    if asked == "auto":
        median = float(np.median([max(size) for size in sizes]))
        return max(unit, min(math.ceil(median / unit), MOST // unit) * unit)
    size = int(asked)
    if size % unit:
        near = max(unit, round(size / unit) * unit)
        raise UserError(f"--size {size}: {info.name} under a pyramid takes multiples of {unit}; try --size {near}")
    return size


def known_by_boxes(annotations: Annotations) -> Known:
    """The images and their boxes are known by names, sides, boxes and classes, and by the files' contents."""
    digest = hashlib.sha256(repr(annotations.classes).encode("utf-8", "surrogateescape"))
    for file, size, objects in zip(annotations.files, annotations.sizes, annotations.objects, strict=True):
        digest.update(f"{file} {size}\n".encode("utf-8", "surrogateescape"))
        digest.update(objects.boxes.tobytes() + objects.labels.tobytes() + objects.crowd.tobytes())
    return files_known_by(digest.hexdigest(), [annotations.path(index) for index in range(len(annotations))])
