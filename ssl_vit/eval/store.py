"""Rows of features in memory, or in a memory-mapped file that a killed extraction goes on with."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_vit.data.sources import Source
from ssl_vit.errors import UserError
from ssl_vit.eval.files import write_whole
from ssl_vit.eval.readout import Readout

MISSING, DONE, UNREADABLE = 0, 1, 2
FEATURES, STATE, INDEX = "features.npy", "rows.npy", "index.json"

_COMMIT = 64  # blocks between two syncs of the file; what a kill costs at most


class Store:
    """A row of features for every image of a source, and whether it is there.

    In a folder: ``features.npy`` float32 [N, D], ``rows.npy`` uint8 [N] (0 missing, 1 there, 2 image unreadable) and
    ``index.json`` (how they are made, names and labels). A row counts as there only once its features are on the disk.
    """

    def __init__(self, features: NDArray[np.float32], state: NDArray[np.uint8], on_disk: bool) -> None:
        self.features, self.state, self._on_disk = features, state, on_disk
        self._waiting: list[tuple[NDArray[np.int64], int]] = []  # rows and their state, not yet on the disk

    @classmethod
    def open(cls, folder: Path | None, source: Source, width: int, made: dict[str, Any], first: bool = True) -> Store:
        """Empty in memory, or the folder's, made there by the `first` of the processes that fill it.

        made: what the features depend on; a folder with other features is refused with UserError.
        """
        rows = len(source)
        if folder is None:
            return cls(np.zeros((rows, width), np.float32), np.zeros(rows, np.uint8), on_disk=False)
        made = json.loads(json.dumps(made | {"width": width, "data": source.fingerprint}))
        if first:
            _prepare(folder, source, made, (rows, width))
        found = read_index(folder)["made"]
        if found != made:
            other = next(key for key in made.keys() | found.keys() if found.get(key) != made.get(key))
            raise UserError(
                f"{folder}: holds other features ({other}: {found.get(other)}, now {made.get(other)}); "
                "choose another folder or remove it"
            )
        features, state = (np.load(folder / name, mmap_mode="r+") for name in (FEATURES, STATE))
        return cls(features, state, on_disk=True)

    def missing(self, block: int) -> list[NDArray[np.int64]]:
        """The rows of every block that is not whole, in order; a block is always the same `block` rows.

        A block is computed as a whole, since the last digits of a product depend on how many rows it has.
        """
        starts = range(0, len(self.state), block)
        blocks = [np.arange(start, min(start + block, len(self.state))) for start in starts]
        return [rows for rows in blocks if (self.state[rows] == MISSING).any()]

    def write(self, rows: NDArray[np.int64], features: NDArray[np.float32], unreadable: NDArray[np.int64]) -> None:
        """Features [n, D] of some rows, and the rows of images that could not be read."""
        if len(rows):
            self.features[rows] = features
        self._waiting += [(rows, DONE), (unreadable, UNREADABLE)]
        if not self._on_disk or len(self._waiting) >= 2 * _COMMIT:
            self.commit()

    def commit(self) -> None:
        """Features reach the disk before the word that they are there."""
        if isinstance(self.features, np.memmap):
            self.features.flush()
        for rows, state in self._waiting:
            self.state[rows] = state
        self._waiting.clear()
        if isinstance(self.state, np.memmap):
            self.state.flush()


def read_index(folder: Path) -> dict[str, Any]:
    """index.json of a folder of features."""
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / INDEX}: cannot be read ({error}); remove the folder and extract again") from error
    return index


def describe(readout: Readout, encoder: str, weights_sha256: str | None) -> dict[str, Any]:
    """What the features of an image depend on."""
    return asdict(readout) | {"encoder": encoder, "weights_sha256": weights_sha256}


def _prepare(folder: Path, source: Source, made: dict[str, Any], shape: tuple[int, int]) -> None:
    """Zeros and an index, the index last: a folder with an index has all three files."""
    if (folder / INDEX).is_file():
        return
    if folder.exists() and any(folder.iterdir()):
        names = {path.name for path in folder.iterdir()}
        if not names <= {FEATURES, STATE}:
            raise UserError(f"{folder}: has other files in it; choose an empty or a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, dtype, size in ((FEATURES, np.float32, shape), (STATE, np.uint8, shape[:1])):
        np.lib.format.open_memmap(folder / name, "w+", dtype, size).flush()
    index = {
        "made": made,
        "files": [os.fsencode(source.name(i)).decode("utf-8", "backslashreplace") for i in range(len(source))],
        "labels": source.labels.tolist(),
        "classes": list(source.classes),
    }
    text = json.dumps(index, ensure_ascii=True)
    write_whole(folder / INDEX, lambda file: file.write(text.encode()))
