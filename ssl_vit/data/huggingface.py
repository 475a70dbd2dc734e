"""Datasets of the library `datasets` are read here: from the Hugging Face hub, a folder, or the user's program.

Its bytes go through our own decoder, row by row, so that bad images, order and exact resuming are those of a folder.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_vit.data.dataset_name import DatasetName, parse, require_library
from ssl_vit.data.decode import read_bytes
from ssl_vit.data.remote import is_url
from ssl_vit.data.rows import RowSource, open_rows
from ssl_vit.data.source import ImageFile
from ssl_vit.errors import UserError

_SAVED = ("dataset_dict.json", "dataset_info.json")  # what `save_to_disk` leaves for several splits, for one
_LABELS = ("label", "labels")  # the column of classes, where there are several
STREAM = (
    "a stream loses images when a run is resumed, and can't be shuffled as a whole; load it without streaming=True, or "
    "write its images to a folder or to archives"
)


def is_saved(folder: str) -> bool:
    """Tell whether `save_to_disk` wrote the folder."""
    return os.path.isfile(os.path.join(folder, _SAVED[0])) or all(
        os.path.isfile(os.path.join(folder, name)) for name in (_SAVED[1], "state.json")
    )


def open_named(text: str) -> RowSource:
    """The images of "hf:owner/name" or "hf:folder", see ``dataset_name``; fetched where they are not yet.

    Without ,split= it is the only split or the one called train; without ,column= the only column of images. Raises
    UserError, which lists what there is.
    """
    name = parse(text)
    return open_dataset(_load(name), str(name), name.split, name.column)


def open_saved(folder: str) -> RowSource:
    """Open the images of a folder that `save_to_disk` wrote. Raises UserError."""
    require_library(folder)
    return open_dataset(_load(DatasetName(folder)), folder)


def open_dataset(dataset: Any, root: str, split: str | None = None, column: str | None = None) -> RowSource:
    """Open the images of a `Dataset`, or of one split of a `DatasetDict`; `root` is what messages call it.

    Labels are its column of type ClassLabel, if there is one or one is called label. Raises UserError.
    """
    import datasets

    if isinstance(dataset, (datasets.IterableDataset, datasets.IterableDatasetDict)):
        raise UserError(f"{root}: {STREAM}")
    if isinstance(dataset, datasets.DatasetDict):
        chosen = _split(dataset, split, root)
        dataset, root = dataset[chosen], root if split else f"{root},split={chosen}"
    elif split is not None:
        raise UserError(f"{root}: has no splits; leave out split={split}")
    if dataset.format["type"] == "custom":
        raise UserError(f"{root}: has a transform, and views are made here; give it without: dataset.with_format(None)")
    column = _column(dataset.features, column, root)
    return open_rows(_Column(dataset, column), root, _files(dataset, column, root), *_labels(dataset))


class _Column:
    """The files in one column; what is beside them in a row is not read."""

    def __init__(self, dataset: Any, column: str) -> None:
        self._dataset, self._name = dataset.select_columns([column]).with_format("arrow"), column

    def read(self, index: int) -> bytes:
        stored = self._dataset[index][self._name][0].as_py()
        if stored is None or (stored["bytes"] is None and stored["path"] is None):
            raise ValueError("no image in this row")
        found: bytes | None = stored["bytes"]
        return read_bytes(stored["path"]) if found is None else found


def _load(name: DatasetName) -> Any:
    import datasets

    path = os.path.expanduser(name.path)
    if not os.path.isdir(path) and (path.startswith((".", "/")) or path.count("/") > 1):
        raise UserError(f"{name}: no such folder: {path}; give a folder that is there, or owner/name on the hub")
    try:
        if os.path.isdir(path) and is_saved(path):
            if name.config or name.revision:
                raise UserError(f"{name}: {path} was written by save_to_disk, and is all there is; leave out the rest")
            return datasets.load_from_disk(path)
        return datasets.load_dataset(path, name.config, revision=name.revision)
    except UserError:
        raise
    except Exception as error:  # the library's own errors, those of the hub, of the network and of file formats
        said = " ".join(str(error).split())[:300]
        raise UserError(f"{name}: cannot be had ({type(error).__name__}: {said}); check the name") from error


def _split(splits: Any, asked: str | None, root: str) -> str:
    chosen = asked or (next(iter(splits)) if len(splits) == 1 else "train")
    if chosen not in splits:
        there = ", ".join(f"{name} ({len(rows)} rows)" for name, rows in splits.items())
        raise UserError(f"{root}: {f'no split {asked}; ' if asked else ''}its splits are {there}; choose by ,split=…")
    return str(chosen)


def _column(features: Any, asked: str | None, root: str) -> str:
    import datasets

    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    chosen = asked or (images[0] if len(images) == 1 else None)
    if chosen is None or chosen not in images:
        there = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in features.items())
        problem = f"no column of images called {asked}" if asked else f"{len(images) or 'no'} columns of images"
        do = "choose one by ,column=…" if images else "dataset.cast_column(name, datasets.Image()) makes one"
        raise UserError(f"{root}: {problem} among {there}; {do}")
    return chosen


def _files(dataset: Any, column: str, root: str) -> list[ImageFile]:
    """Names and sizes, of which Arrow knows those of all rows without reading an image."""
    import pyarrow.compute as compute

    stored = dataset.data.column(column)
    lengths = _in_order(dataset, compute.binary_length(compute.struct_field(stored, "bytes")).fill_null(-1)).to_pylist()
    paths = _in_order(dataset, compute.struct_field(stored, "path")).to_pylist()
    found = []
    for row, (path, length) in enumerate(zip(paths, lengths, strict=True)):
        if length < 0 and path is not None:
            if is_url(path):
                raise UserError(f"{root}: row {row} holds an address, no image ({path}); fetch the images first")
            length = os.path.getsize(path) if os.path.isfile(path) else 0
        found.append((os.fsencode(os.path.basename(path or "")), max(length, 0)))
    return found


def _labels(dataset: Any) -> tuple[NDArray[np.int64] | None, list[str]]:
    """Labels [N], -1 where one is missing, and what the classes are called."""
    import datasets

    columns = [name for name, kind in dataset.features.items() if isinstance(kind, datasets.ClassLabel)]
    columns = columns if len(columns) == 1 else [name for name in columns if name in _LABELS][:1]
    if not columns:
        return None, []
    numbers = _in_order(dataset, dataset.data.column(columns[0]).fill_null(-1))
    return numbers.to_numpy(), dataset.features[columns[0]].names


def _in_order(dataset: Any, values: Any) -> Any:
    """Values of the rows as Arrow keeps them, in the dataset's order."""
    order = dataset._indices  # what `shuffle` and `select` have set; it has no public name
    return values if order is None else values.take(order.column(0))
