"""Labelled images that can be scored on; every mistake is one line that names their folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ssl_vit.data.bad import printable
from ssl_vit.data.class_folders import in_class_folders
from ssl_vit.data.dataset_name import Images, images_name
from ssl_vit.data.folder import LINKS_HINT, OUTSIDE
from ssl_vit.data.inventory import known_by
from ssl_vit.data.left_out import note_left_out
from ssl_vit.data.rows import RowSource
from ssl_vit.data.sources import Source, open_source
from ssl_vit.errors import UserError

LABELS = "two or more sub-folders of images, one for each class, or a dataset whose labels are classes"
_SHOWN = 5  # names in a message
log = logging.getLogger("ssl_vit")
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test"})


def open_labelled(images: Images, side: str, outside_links: bool = False, known: Collection[str] = ()) -> Source:
    """Open a folder with a sub-folder for each class, or a dataset with labels; `side` is the flag that named it.

    known: classes, of which a single one may be all that is there. Images beside the sub-folders are left out, and so
    are sub-folders without images of what is only scored; both are said.

    Raises:
        UserError: no labels, labels one level further down, a single image, or an empty class to learn from.
    """
    source, path = open_source(images, outside_links), images_name(images)
    note_left_out(source)
    if len(source) < 2:
        raise UserError(f"--{side} {path}: a single image; a score needs several of each class")
    source = without_strays(source, f"--{side} {path}", known)
    if not source.classes:
        raise UserError(f"--{side} {path}: no labels; expected {LABELS}")
    splits = sorted(_SPLITS & {name.lower() for name in source.classes})
    if splits and all(source.name(i).count("/") > 1 for i in range(len(source))):
        raise UserError(f"--{side} {path}: its sub-folders are sets, not classes; give {os.path.join(path, splits[0])}")
    if not isinstance(source, RowSource) and os.path.isdir(path):
        folders = {entry.name for entry in os.scandir(path) if os.path.isdir(entry.path)}
        empty = sorted({name for name in folders if not name.startswith(".")} - set(source.classes))
        links = f" or, where it is a link, {LINKS_HINT}" if OUTSIDE in source.skipped else ""
        if empty and side == "train":
            raise UserError(f"--train {path}: empty class {_first(empty)}; add images, remove the folder{links}")
        if empty:
            log.warning("--%s %s: no images in %s: left out%s", side, path, _first(empty), links and f"; {LINKS_HINT}")
    return source


def without_strays(source: Source, where: str, known: Collection[str] = ()) -> Source:
    """The source without images beside its folders of classes, which are named in the log.

    known: classes, of which a single folder may be all that is there.
    """
    found, beside = in_class_folders(source, known)
    if beside:
        count = f"{len(beside)} of {len(source)}"
        log.warning("%s: %s images lie beside the class folders and are left out: %s", where, count, _first(beside))
    return found


def with_classes_of(train: Source, val: Source) -> Source:
    """Val with its labels counted as train counts them; it need not have every class, and what it lacks is said.

    Raises:
        UserError: a class of val that train doesn't have, or the same images on both sides.
    """
    if train.fingerprint == val.fingerprint and known_by(train) == known_by(val):
        raise UserError(
            f"--train and --val hold the same images ({train.root}, {val.root}); a score on what was learnt from says "
            "nothing, give --val others"
        )
    if val.classes == train.classes:
        return val
    lacking, unknown = (sorted(set(a.classes) - set(b.classes)) for a, b in ((train, val), (val, train)))
    if unknown:
        both = f"{_first(lacking)} only in --train, " if lacking else ""
        raise UserError(
            f"--train and --val have different classes: {both}{_first(unknown)} only in --val; what --val has must be "
            "learnt: give both the same sub-folders"
        )
    log.warning(
        "--val %s: no images of %s (%d of %d classes); the score is over the others",
        val.root,
        _first(lacking),
        len(lacking),
        len(train.classes),
    )
    number = {name: i for i, name in enumerate(train.classes)}
    places = np.array([number[name] for name in val.classes], dtype=np.int32)
    return replace(val, classes=train.classes, _labels=places[val.labels])


def check_every_class(labels: NDArray[np.int64], source: Source) -> None:
    """Raise UserError that names the classes of which there are images, and not one could be read."""
    read, there = (np.bincount(each, minlength=len(source.classes)) for each in (labels, source.labels))
    empty = [source.classes[i] for i in np.flatnonzero((read == 0) & (there > 0))]
    if empty:
        raise UserError(f"{source.root}: no readable image of {_first(empty)}; add images or remove the folder")


def _first(names: Sequence[str]) -> str:
    return ", ".join(printable(name) for name in names[:_SHOWN]) + " …" * (len(names) > _SHOWN)
