"""Labelled images that can be scored on; every mistake is one line that names their folder."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from ssl_vit.data.dataset_name import Images, images_name
from ssl_vit.data.folder import LINKS_HINT, OUTSIDE
from ssl_vit.data.left_out import note_left_out
from ssl_vit.data.rows import RowSource
from ssl_vit.data.sources import Source, open_source
from ssl_vit.errors import UserError

LABELS = "two or more sub-folders of images, one for each class, or a dataset whose labels are classes"
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test"})


def open_labelled(images: Images, side: str, outside_links: bool = False) -> Source:
    """Open a folder with a sub-folder for each class, or a dataset with labels; `side` is the flag that named it.

    Raises:
        UserError: no labels, labels one level further down, a single image, or an empty class.
    """
    source, path = open_source(images, outside_links), images_name(images)
    note_left_out(source)
    if len(source) < 2:
        raise UserError(f"--{side} {path}: a single image; a score needs several of each class")
    if not source.classes:
        raise UserError(f"--{side} {path}: no labels; expected {LABELS}")
    splits = sorted(_SPLITS & {name.lower() for name in source.classes})
    if splits and all(source.name(i).count("/") > 1 for i in range(len(source))):
        raise UserError(f"--{side} {path}: its sub-folders are sets, not classes; give {os.path.join(path, splits[0])}")
    if isinstance(source, RowSource):
        return source
    folders = [entry for entry in os.scandir(path) if os.path.isdir(entry.path)] if os.path.isdir(path) else []
    empty = sorted({entry.name for entry in folders if not entry.name.startswith(".")} - set(source.classes))
    if empty:
        links = f" or, where it is a link, {LINKS_HINT}" if OUTSIDE in source.skipped else ""
        raise UserError(f"--{side} {path}: empty class {', '.join(empty[:5])}; add images, remove the folder{links}")
    return source


def check_same_classes(train: Source, val: Source) -> None:
    """Raise UserError that names the classes of one side only, or for the same images on both sides."""
    if train.fingerprint == val.fingerprint:
        raise UserError(
            f"--train and --val hold the same images ({train.root}, {val.root}); a score on what was learnt from says "
            "nothing, give --val others"
        )
    only = {
        "--train": sorted(set(train.classes) - set(val.classes)),
        "--val": sorted(set(val.classes) - set(train.classes)),
    }
    for side, names in only.items():
        if names:
            raise UserError(
                f"--train and --val have different classes: {', '.join(names[:5])}{' …' * (len(names) > 5)} only in "
                f"{side}; give both the same sub-folders"
            )


def check_every_class(labels: NDArray[np.int64], source: Source) -> None:
    """Raise UserError that names the classes of which no image could be read."""
    counts = np.bincount(labels, minlength=len(source.classes))
    empty = [source.classes[i] for i in np.flatnonzero(counts == 0)]
    if empty:
        raise UserError(f"{source.root}: no readable image of {', '.join(empty[:5])}; add images or remove the folder")
