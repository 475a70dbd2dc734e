"""Rows of numbers, one an image, in memory or in a memory-mapped file that a killed process goes on with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_vit.data.inventory import INVENTORY, Inventory, changes_since, write_inventory
from ssl_vit.data.sources import Source
from ssl_vit.errors import UserError
from ssl_vit.files import PARTIAL, write_whole

MISSING, DONE, UNREADABLE = 0, 1, 2
FEATURES, STATE, INDEX = "features.npy", "rows.npy", "index.json"

_COMMIT = 64  # blocks between two syncs of the file; what a kill costs at most


class Store:
    """A store has a row of numbers for every image of a source, and knows whether it is there.

    In a folder: ``features.npy`` (or another `file`) float32 [N, D], ``rows.npy`` uint8 [N] (0 missing, 1 there,
    2 image unreadable), ``images.npz`` (size, time and content of each image) and ``index.json`` (how they are made,
    names and labels). A row counts as there only once its numbers are on the disk.
    """

    def __init__(self, values: NDArray[np.float32], state: NDArray[np.uint8], on_disk: bool) -> None:
        self.values, self.state, self._on_disk = values, state, on_disk
        self._waiting: list[tuple[NDArray[np.int64], int]] = []  # rows and their state, not yet on the disk

    @classmethod
    def open(
        cls,
        folder: Path | None,
        source: Source,
        width: int,
        made: dict[str, Any],
        first: bool = True,
        file: str = FEATURES,
        inventory: Inventory | None = None,
    ) -> Store:
        """Open a store: empty in memory, or the folder's, which the `first` of the processes that fill it makes.

        made: what the rows depend on; inventory: what the images are, as far as the first process knows it. A folder of
        others is refused with UserError. file: the rows' file's name.
        """
        rows = len(source)
        if folder is None:
            return cls(np.zeros((rows, width), np.float32), np.zeros(rows, np.uint8), on_disk=False)
        made = json.loads(json.dumps(made | {"width": width, "data": source.fingerprint}))
        if first:
            _prepare(folder, source, made, file, (rows, width), inventory)
        found = read_index(folder)["made"]
        if found != made:
            other = next(key for key in made.keys() | found.keys() if found.get(key) != made.get(key))
            raise UserError(
                f"{folder}: holds other {Path(file).stem} ({other}: {found.get(other)}, now {made.get(other)}); "
                "choose another folder or remove it"
            )
        if first:
            _check_images(folder, file, inventory)
        values, state = (np.load(folder / name, mmap_mode="r+") for name in (file, STATE))
        return cls(values, state, on_disk=True)

    def missing(self, block: int) -> list[NDArray[np.int64]]:
        """List the rows of every block that is not whole, in order; a block is always the same `block` rows.

        A block is computed as a whole, since the last digits of a product depend on how many rows it has.
        """
        starts = range(0, len(self.state), block)
        blocks = [np.arange(start, min(start + block, len(self.state))) for start in starts]
        return [rows for rows in blocks if (self.state[rows] == MISSING).any()]

    def write(self, rows: NDArray[np.int64], values: NDArray[np.float32], unreadable: NDArray[np.int64]) -> None:
        """Keep the numbers [n, D] of some rows, and mark the rows of images that could not be read."""
        if len(rows):
            self.values[rows] = values
        self._waiting += [(rows, DONE), (unreadable, UNREADABLE)]
        if not self._on_disk or len(self._waiting) >= 2 * _COMMIT:
            self.commit()

    def commit(self) -> None:
        """Numbers reach the disk before the word that they are there."""
        if isinstance(self.values, np.memmap):
            self.values.flush()
        for rows, state in self._waiting:
            self.state[rows] = state
        self._waiting.clear()
        if isinstance(self.state, np.memmap):
            self.state.flush()


def read_index(folder: Path) -> dict[str, Any]:
    """Read index.json of a folder of rows; UserError where it can't be read."""
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / INDEX}: cannot be read ({error}); remove the folder and run again") from error
    return index


def _check_images(folder: Path, file: str, inventory: Inventory | None) -> None:
    """UserError where some images aren't those that the rows are of; a folder of an older version learns what they are.

    Where all have another time and nothing else differs, they are taken for a copy.
    """
    changed = changes_since(folder, inventory)
    if changed:
        raise UserError(
            f"{folder}: holds {Path(file).stem} of images that have changed since ({changed}); choose another folder "
            "or remove it"
        )
    if changed is None or changed.copied:
        write_inventory(folder / INVENTORY, inventory)


def _reserve(file: Path) -> None:
    """Take the room that a file says it has: where the disk lacks it, writing to the mapped file would kill us."""
    if hasattr(os, "posix_fallocate"):
        with file.open("rb+") as opened:
            try:
                os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
            except OSError as error:
                error.filename = str(file)
                raise


def _prepare(
    folder: Path,
    source: Source,
    made: dict[str, Any],
    file: str,
    shape: tuple[int, int],
    inventory: Inventory | None,
) -> None:
    """Zeros, what the images are, and an index, the index last: a folder with an index has all files."""
    if (folder / INDEX).is_file():
        return
    if folder.exists() and any(folder.iterdir()):
        names = {path.name for path in folder.iterdir() if not path.name.endswith(PARTIAL)}
        if not names <= {file, STATE, INVENTORY}:
            raise UserError(f"{folder}: has other files in it; choose an empty or a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, dtype, size in ((file, np.float32, shape), (STATE, np.uint8, shape[:1])):
        np.lib.format.open_memmap(folder / name, "w+", dtype, size).flush()
        _reserve(folder / name)
    write_inventory(folder / INVENTORY, inventory)
    index = {
        "made": made,
        "files": [os.fsencode(source.name(i)).decode("utf-8", "backslashreplace") for i in range(len(source))],
        "labels": source.labels.tolist(),
        "classes": list(source.classes),
    }
    text = json.dumps(index, ensure_ascii=True)
    write_whole(folder / INDEX, lambda index_file: index_file.write(text.encode()))
