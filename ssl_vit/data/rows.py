"""Images in the rows of a dataset that a library keeps, as a source like any other: numbered, so resumed exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ssl_vit.data.decode import Row, Rows
from ssl_vit.data.source import UNNAMED, ImageFile, Source, build_source
from ssl_vit.errors import UserError


@dataclass(frozen=True, eq=False)
class RowSource(Source):
    """The images lie in rows; `name` is "row 17", with the name of its file where there was one: "row 17: cat.jpg"."""

    _rows: Rows = field(repr=False)

    def name(self, index: int) -> str:
        """Name the row, counted from 0."""
        file = super().name(index)
        return f"row {index}: {file}" if file else f"row {index}"

    def path(self, index: int) -> Row:
        """Return the row, with what a file of it would be called."""
        folder = f"{self.classes[self._labels[index]].replace('/', '_')}/" if self.classes else ""
        file = super().name(index)
        return Row(self._rows, index, f"{folder}{index:08d}{'-' * bool(file)}{file}")


def open_rows(
    rows: Rows, root: str, found: list[ImageFile], labels: NDArray[np.int64] | None, classes: Sequence[str]
) -> RowSource:
    """Make a source of rows; found: each one's file name, which may be empty, and size in bytes.

    labels: the numbers [N] of their `classes`; the images count as unlabelled where not every row has one of them.
    Raises UserError without rows.
    """
    if not found:
        raise UserError(f"{root}: holds no images; check how it was made")
    plain = vars(build_source(root, found, Counter()))
    types = {"unnamed" if kind == UNNAMED else kind: count for kind, count in plain["types"].items()}
    names, numbers = _sorted(classes, labels) if labels is not None else ((), np.empty(0, np.int32))
    return RowSource(**plain | {"types": types, "classes": names, "_labels": numbers}, _rows=rows)


def _sorted(classes: Sequence[str], labels: NDArray[np.int64]) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Classes in the order that folders would have, so that labels of a dataset and of a folder can be compared."""
    whole = len(set(classes)) == len(classes) > 1 and len(labels) and labels.min() >= 0 and labels.max() < len(classes)
    if not whole:
        return (), np.empty(0, np.int32)
    order = sorted(range(len(classes)), key=lambda number: classes[number])
    place = np.empty(len(classes), np.int32)
    place[order] = np.arange(len(classes), dtype=np.int32)
    return tuple(classes[number] for number in order), place[labels]
