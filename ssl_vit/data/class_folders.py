"""Images in class folders beside which other images lie."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from ssl_vit.data.source import Source

_FEW = 0.5  # share of the images that may lie beside folders of classes; where more do these are no classes


def in_class_folders(source: Source, known: Collection[str] = ()) -> tuple[Source, list[str]]:
    """The images of a folder that lie in folders of classes, labelled by them, and the names of those beside them.

    Two or more folders are classes, where not most images lie beside them, and so is a single one that is `known` as
    a class. A source that has labels, or no such folders, comes back as it is.
    """
    if source.classes or type(source) is not Source:  # rows and archives have labels of their own
        return source, []
    folders = [_folder(source.name(index)) for index in range(len(source))]
    beside = [index for index, folder in enumerate(folders) if folder is None]
    classes = {folder for folder in folders if folder is not None}
    enough = len(classes) > 1 or (len(classes) == 1 and classes <= set(known))
    if not enough or len(beside) >= _FEW * len(folders) or classes & {"", ".", ".."}:
        return source, []
    return _labelled(source, beside), [source.name(index) for index in beside]


def _folder(name: str) -> str | None:
    """The folder that an image lies in, as Source's labels have it; None where it lies in none."""
    return name.split("/", 1)[0] if "/" in name else None


def _labelled(source: Source, beside: Sequence[int]) -> Source:
    kept = np.setdiff1d(np.arange(len(source)), beside)
    names = [os.fsencode(source.name(int(index))) for index in kept]
    folders = [name.split(b"/", 1)[0] for name in names]
    number = {folder: i for i, folder in enumerate(sorted(set(folders)))}
    return replace(
        source,
        classes=tuple(os.fsdecode(folder) for folder in number),
        fingerprint=source.fingerprint | {"images": len(kept)},
        _names=b"".join(names),
        _ends=np.cumsum([len(name) for name in names], dtype=np.int64),
        _labels=np.array([number[folder] for folder in folders], dtype=np.int32),
    )
