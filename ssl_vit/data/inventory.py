"""What images were when something was made of them, kept beside it, so that what has changed since can be named."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssl_vit.data.bad import printable
from ssl_vit.data.decode import BadImage, Member, Place, read_bytes
from ssl_vit.data.joined import JoinedSource
from ssl_vit.data.remote import is_url
from ssl_vit.data.rows import RowSource
from ssl_vit.data.sources import Source
from ssl_vit.files import write_whole

INVENTORY = "images.npz"  # beside what was made of the images
CONTENT = 1e9  # bytes of a set up to which its files are read, as their times say less
COARSE = 2e9  # ns to which the coarsest of file systems keep times

_SHOWN = 5  # names of each kind of change
_COLUMNS = ("names", "sizes", "times", "digests")


class Inventory(NamedTuple):
    """An inventory has a row for each image."""

    names: list[bytes]
    sizes: NDArray[np.int64]
    times: NDArray[np.int64]  # of the last change, ns; 0 where not known
    digests: NDArray[np.uint64]  # of the content; empty where it was not read


def take_inventory(source: Source) -> Inventory | None:
    """List the images of a source; the content of local files too, where they are a gigabyte at most.

    None for rows of a dataset: what its fingerprint is made of is all that they are known by.
    """
    if isinstance(source, RowSource):
        return None
    names = [os.fsencode(source.name(i)) for i in range(len(source))]
    read = _is_local(source) and int(source.sizes.sum()) <= CONTENT
    digests = [_digest(source.path(i)) for i in range(len(source))] if read else []
    return Inventory(names, source.sizes, source.times, np.array(digests, np.uint64))


class Known(NamedTuple):
    """Images are known by this."""

    sha256: str  # in hex
    by_content: bool  # whether it is of their contents too, beside names and sizes


def known_by(source: Source) -> Known:
    """Fingerprint the images of a source: wherever they lie and whenever they were copied there, it is the same."""
    found, sha256 = take_inventory(source), str(source.fingerprint["sha256"])
    return Known(sha256, False) if found is None else _known(sha256, found.digests)


def files_known_by(sha256: str, paths: Sequence[str]) -> Known:
    """Fingerprint files, of whose names and what else belongs to them there is a hash already."""
    read = sum(os.path.getsize(path) for path in paths if os.path.isfile(path)) <= CONTENT
    return _known(sha256, np.array([_digest(path) for path in paths] if read else [], np.uint64))


def _known(sha256: str, digests: NDArray[np.uint64]) -> Known:
    if not len(digests):
        return Known(sha256, False)
    return Known(hashlib.sha256(sha256.encode() + digests.astype("<u8").tobytes()).hexdigest(), True)


def write_inventory(path: Path, found: Inventory | None) -> None:
    """Write the file, whole or not at all, where there is anything to write."""
    if found is None:
        return
    names = np.frombuffer(b"".join(name + b"\0" for name in found.names), np.uint8)

    def write(file: BinaryIO) -> None:
        np.savez_compressed(file, names=names, sizes=found.sizes, times=found.times, digests=found.digests)

    write_whole(path, write)


def read_inventory(path: Path) -> Inventory | None:
    """Read the file; None where there is none, as in runs of older versions, or a damaged one."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            names, sizes, times, digests = (kept[column] for column in _COLUMNS)
    except Exception:  # NumPy, zipfile and zlib each raise their own
        return None
    return Inventory(names.tobytes().split(b"\0")[:-1], sizes, times, digests)


class Changes(NamedTuple):
    """Changes are the names of images that are not what they were."""

    added: list[bytes]
    removed: list[bytes]
    changed: list[bytes]
    reordered: bool = False
    copied: bool = False  # every file has another time and nothing else differs: taken for a copy of the set

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.reordered)

    def __str__(self) -> str:
        kinds = (("added", self.added), ("removed", self.removed), ("changed", self.changed))
        said = [f"{len(names)} {kind}: {_some(names)}" for kind, names in kinds if names]
        return "; ".join(said) or "the same images in another order"


def changes_since(folder: Path, found: Inventory | None) -> Changes | None:
    """Compare images with those that a folder was made of, under the same names; None where that isn't known."""
    before = read_inventory(folder / INVENTORY)
    if before is None or found is None or len(before.names) != len(found.names):
        return None
    return changes(before._replace(names=found.names), found)


def changes(before: Inventory, now: Inventory) -> Changes:
    """Compare two inventories: by name; then by size, and by content or, where that was not read, by time.

    Times alone say little, as a copy has its own: they count only where other images have kept theirs.
    """
    if before.names == now.names:
        rows = was = np.arange(len(now.names))
    else:
        place = {name: row for row, name in enumerate(before.names)}
        pairs = [(row, place[name]) for row, name in enumerate(now.names) if name in place]
        rows, was = np.array(pairs, np.int64).reshape(-1, 2).T
    old, new = set(before.names), set(now.names)
    differ = before.sizes[was] != now.sizes[rows]
    copied = False
    if len(before.digests) and len(now.digests):
        differ |= before.digests[was] != now.digests[rows]
    else:
        touched = (np.abs(before.times[was] - now.times[rows]) > COARSE) & (before.times[was] != 0)
        touched &= now.times[rows] != 0
        copied = len(rows) > 1 and bool(touched.all())
        differ |= touched & (not copied)
    return Changes(
        added=[name for name in now.names if name not in old],
        removed=[name for name in before.names if name not in new],
        changed=[now.names[row] for row in rows[differ]],
        reordered=old == new and before.names != now.names,
        copied=copied,
    )


def _is_local(source: Source) -> bool:
    """Whether its images are files here: those of a library's rows and behind a URL cost more than reading a file."""
    if isinstance(source, JoinedSource):
        return all(_is_local(part) for part in source.parts)
    place = source.path(len(source) - 1)  # archives behind URLs may follow local ones
    return isinstance(place, str) or (isinstance(place, Member) and not is_url(place.archive))


def _digest(place: Place) -> int:
    """Of a file's bytes; 0 for one that can't be read."""
    try:
        data = read_bytes(place)
    except BadImage:
        return 0
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _some(names: list[bytes]) -> str:
    return ", ".join(printable(os.fsdecode(name)) for name in names[:_SHOWN]) + ", …" * (len(names) > _SHOWN)
