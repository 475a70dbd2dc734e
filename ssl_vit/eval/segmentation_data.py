"""What segments are learnt from and scored on: two sets that fit together, whichever format they are in."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Collection
from pathlib import Path

from ssl_vit.data.annotations import first_of
from ssl_vit.data.inventory import Known, files_known_by
from ssl_vit.data.segment_masks import open_masks
from ssl_vit.data.segmentation import find_pairs
from ssl_vit.data.segments import SegmentSource
from ssl_vit.data.segments_coco import images_of, is_panoptic, of_instances, open_panoptic
from ssl_vit.errors import UserError
from ssl_vit.eval.detection_data import open_boxes

log = logging.getLogger("ssl_vit")


def of_coco(path: Path) -> bool:
    """Whether a side is a COCO file."""
    return path.suffix.lower() == ".json" and path.is_file()


def open_segments(path: Path, images: str, side: str, ignore: Collection[int], max_bad: float) -> SegmentSource:
    """The segments of one side ("train", "val") are opened; what was left out goes to the log.

    images: the folder of a COCO file's images, or "auto". ignore: numbers in masks that don't count.

    Raises:
        UserError: nothing of the kind there, or more than the share `max_bad` of it can't be used.
    """
    where = f"--{side} {path}"
    if not of_coco(path):
        if images != "auto":
            raise UserError(f"{where}: only a COCO .json is given images of elsewhere; leave --{side}-images out")
        source: SegmentSource = open_masks(path, find_pairs(path, side), ignore)
    elif is_panoptic(path):
        source = open_panoptic(path, images_of(path, None if images == "auto" else images))
    else:
        hint = "segmentation needs one for each"
        source = of_instances(path, open_boxes(path, images, side, outlined=True, max_bad=max_bad, needs=hint))
        return source
    for line in source.report().splitlines():
        log.warning("%s: %s", where, line)
    _check(source, where, max_bad)
    return source


def _check(source: SegmentSource, where: str, max_bad: float) -> None:
    """UserError where too many images can't be used."""
    bad, total = len(source.left_out), len(source) + len(source.left_out)
    shown = first_of(f"{name} ({reason})" for name, reason in source.left_out.items())
    if not len(source):
        raise UserError(f"{where}: none of the {total} images can be used: {shown or 'none is listed'}")
    if bad > max_bad * total:
        raise UserError(
            f"{where}: {bad} of {total} images ({bad / total:.1%}) can't be used, more than the {max_bad:.1%} that "
            f"--max-bad allows: {shown}; mend or remove them, or raise --max-bad"
        )


def known_by_segments(source: SegmentSource) -> Known:
    """The images and what divides them are known by names and sizes, and by the files' contents."""
    images = [source.path(index) for index in range(len(source))]
    paths = [*images, *(str(path) for path in source.beside())]
    lines = [f"{os.path.relpath(path, source.root)} {os.stat(path).st_size}\n" for path in paths]
    named = hashlib.sha256("".join([repr(source.classes), *lines]).encode("utf-8", "surrogateescape")).hexdigest()
    return files_known_by(named, paths)
