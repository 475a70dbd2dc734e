"""Datasets that a Python program hands over: torchvision's, those of `datasets`, and any that count their images.

A run's other processes, of several devices, can't be handed the object: they run the same program and make their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sized
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils import data

from ssl_vit.data.dataset_name import Dataset, images_name
from ssl_vit.data.decode import BadImage, decode
from ssl_vit.data.huggingface import STREAM, open_dataset
from ssl_vit.data.rows import RowSource, open_rows
from ssl_vit.data.values import EACH
from ssl_vit.errors import UserError

_LIBRARY = ("datasets.arrow_dataset", "datasets.dataset_dict", "datasets.iterable_dataset")
_KIND = "PIL image"
_SAMPLE = 64  # images whose pixels are part of the fingerprint
_TARGETS = ("targets", "labels")  # where torchvision's datasets keep labels


def open_object(dataset: Dataset) -> RowSource:
    """Open the images of a map-style dataset without transforms. Raises UserError.

    Labels are its ``targets`` (or ``labels``), whole numbers, and their names its ``classes``.
    """
    root = images_name(dataset)
    if any(kind.__module__ in _LIBRARY for kind in type(dataset).__mro__):
        return open_dataset(dataset, root)
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__") or isinstance(dataset, Mapping):
        raise UserError(f"{root}: not understood; give a folder, or a dataset with a length whose items have numbers")
    _refuse(dataset, root)
    rows, labels = _Items(dataset), _labels(dataset)
    numbers, names = labels if labels is not None else (None, [])
    source = open_rows(rows, root, [(b"", 0)] * len(dataset), numbers, names)
    return replace(source, types={_KIND: len(dataset)}, fingerprint=_fingerprint(source))


class _Items:
    """What a dataset gives, which must be PIL images."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def read(self, index: int) -> Image.Image:
        item = self._dataset[index]
        image = item[0] if isinstance(item, (tuple, list)) and item else item
        if not isinstance(image, Image.Image):
            raise TypeError(f"expected a PIL image, found {type(image).__module__}.{type(image).__qualname__}")
        return image


def _refuse(dataset: Dataset, root: str) -> None:
    """UserError for what can't be read in any order, and for what would not be the same image each time."""
    if isinstance(dataset, data.IterableDataset):
        raise UserError(f"{root}: {STREAM}")
    inner: Any = dataset
    while inner is not None:
        both = getattr(inner, "transforms", None)  # torchvision: for images and targets, together or in two parts
        if getattr(inner, "transform", None) is not None or getattr(both, "transform", both) is not None:
            raise UserError(f"{root}: has a transform, and views are made here; make it without, with transform=None")
        inner = inner.dataset if isinstance(inner, data.Subset) else None
    try:
        _Items(dataset).read(0)
    except TypeError as error:
        raise UserError(f"{root}: item 0: {error}; give a dataset of images, without transforms") from error
    except Exception:  # an image that can't be read is named and counted when the run comes to it
        pass


def _labels(dataset: Any) -> tuple[NDArray[np.int64], list[str]] | None:
    """Labels [N] and the names of their classes, or the numbers where it gives no names; None without labels."""
    if isinstance(dataset, data.Subset):
        whole = _labels(dataset.dataset)
        return None if whole is None else (whole[0][np.asarray(dataset.indices)], whole[1])
    found = (np.asarray(values) for name in _TARGETS if (values := getattr(dataset, name, None)) is not None)
    labels = next((v.astype(np.int64) for v in found if v.shape == (len(dataset),) and v.dtype.kind in "iu"), None)
    if labels is None or not len(labels) or labels.min() < 0:
        return None
    names = [name if isinstance(name, str) else ", ".join(name) for name in getattr(dataset, "classes", [])]
    if labels.max() < len(names) == len(set(names)):
        return labels, names
    numbers, labels = np.unique(labels, return_inverse=True)
    return labels, [str(number) for number in numbers]


def _fingerprint(source: RowSource) -> dict[str, int | str]:
    """Of the labels and of the pixels of some images: names and sizes, as files have, there are none."""
    digest = hashlib.sha256(" ".join(source.classes).encode() + source.labels.tobytes())
    for index in np.unique(np.linspace(0, len(source) - 1, _SAMPLE).round().astype(int)).tolist():
        try:
            digest.update(decode(source.path(index), EACH).tobytes())
        except BadImage as error:
            digest.update(error.reason.encode())
    return {"images": len(source), "sha256": digest.hexdigest()}
