"""Images in tar archives, as WebDataset lays them out: KEY.jpg, beside which KEY.cls or KEY.json are passed over.

Headers are read once and remembered, so that any image can be read by itself: order, exact resuming and bad files are
those of a folder, whatever the number of archives, ranks and workers.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ssl_vit.data.decode import Member
from ssl_vit.data.remote import is_url, open_url, url_state
from ssl_vit.data.source import EXTENSIONS, Source, build_source, extension
from ssl_vit.data.tar import DamagedTar, entries
from ssl_vit.errors import UserError
from ssl_vit.files import write_whole

log = logging.getLogger("ssl_vit")

_FORMAT = 1  # of the remembered headers


@dataclass(frozen=True, eq=False)
class ShardSource(Source):
    """The images lie in archives; `name` is ARCHIVE:KEY.EXTENSION."""

    archives: tuple[str, ...]
    _archive: NDArray[np.int32] = field(repr=False)  # of each image
    _offsets: NDArray[np.int64] = field(repr=False)
    _sizes: NDArray[np.int64] = field(repr=False)

    def name(self, index: int) -> str:
        """Return the archive's name, and the image's in it."""
        return f"{os.path.basename(self.archives[self._archive[index]])}:{super().name(index)}"

    def path(self, index: int) -> Member:
        """Return the place of the image in its archive."""
        archive = self.archives[self._archive[index]]
        return Member(archive, int(self._offsets[index]), int(self._sizes[index]), super().name(index))

    def shared_by(self, readers: int) -> None:
        """Say what it means that so many processes, of all ranks, read fewer archives, if they do."""
        if len(self.archives) < readers:
            log.info(
                "%s: %d archives for %d reading processes; images, not archives, are divided among them, so none idles",
                self.root,
                len(self.archives),
                readers,
            )


def open_shards(files: Sequence[str], root: str) -> ShardSource:
    """Open the images of archives, in the archives' order; `root` is what messages call them. Raises UserError."""
    heads = [_head(file) for file in files]
    found = [(name, size) for head in heads for name, size in zip(head.names, head.sizes.tolist(), strict=True)]
    if not found:
        raise UserError(f"{root}: no images ({', '.join(EXTENSIONS)}) in {len(files)} archives; name other archives")
    lengths = [len(head.names) for head in heads]
    archive = np.repeat(np.arange(len(files), dtype=np.int32), lengths)
    _refuse_duplicates([name for name, _ in found], archive, files)
    lost = sum(head.lost for head in heads) / max(sum(head.length for head in heads), 1)
    damage = tuple(f"{file}: {head.damage}" for file, head in zip(files, heads, strict=True) if head.damage)
    skipped = Counter({"other files in archives": others} if (others := sum(head.others for head in heads)) else {})
    return ShardSource(
        **vars(build_source(root, found, skipped, damage, lost)),
        archives=tuple(files),
        _archive=archive,
        _offsets=np.concatenate([head.offsets for head in heads]),
        _sizes=np.concatenate([head.sizes for head in heads]),
    )


def _refuse_duplicates(names: list[bytes], archive: NDArray[np.int32], files: Sequence[str]) -> None:
    seen: dict[bytes, int] = {}
    for i, name in enumerate(names):
        key = os.path.splitext(name)[0]
        if key in seen:
            a, b = files[archive[seen[key]]], files[archive[i]]
            where = a if a == b else f"{a} and {b}"
            raise UserError(f"{where}: two images have the key {os.fsdecode(key)!r}; rename or remove one of them")
        seen[key] = i


@dataclass(frozen=True)
class _Head:
    """What an archive's headers say."""

    names: list[bytes]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    others: int  # files that are no images
    length: int  # bytes of the archive
    lost: int  # bytes of it that can't be read for a damaged header
    damage: str  # empty where there is none


def _head(file: str) -> _Head:
    """The headers of an archive, remembered in the user's cache until the archive changes."""
    state = url_state(file) if is_url(file) else _state(file)
    key = hashlib.sha256(f"{_FORMAT} {file if is_url(file) else os.path.abspath(file)} {state}".encode()).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssl_vit" / "shards" / f"{key}.npz"
    if cache.exists():
        with np.load(cache, allow_pickle=False) as kept:
            found = kept["names"].tobytes().split(b"\0")[:-1]
            others, length, lost = kept["counts"].tolist()
            return _Head(found, kept["offsets"], kept["sizes"], others, length, lost, str(kept["damage"]))
    head = _read_head(file)
    names = np.frombuffer(b"".join(name + b"\0" for name in head.names), dtype=np.uint8)
    counts, damage = np.array([head.others, head.length, head.lost]), np.array(head.damage)

    def write(to: BinaryIO) -> None:
        np.savez(to, names=names, offsets=head.offsets, sizes=head.sizes, counts=counts, damage=damage)

    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_whole(cache, write)
    except OSError:  # no place to remember it: it is read again the next time
        pass
    return head


def _state(file: str) -> str:
    status = os.stat(file)
    return f"{status.st_size} {status.st_mtime_ns}"


def _read_head(file: str) -> _Head:
    found, others, lost, damage = [], 0, 0, ""
    with open_url(file) if is_url(file) else open(file, "rb") as opened:
        length = opened.seek(0, os.SEEK_END)
        try:
            for entry in entries(opened, length):
                if _is_image(entry.name):
                    found.append(entry)
                else:
                    others += 1
        except DamagedTar as error:
            lost, damage = length - error.offset, error.reason
    offsets, sizes = (
        np.array(numbers, dtype=np.int64) for numbers in ([e.offset for e in found], [e.size for e in found])
    )
    return _Head([entry.name for entry in found], offsets, sizes, others, length, lost, damage)


def _is_image(name: bytes) -> bool:
    """Whether all that follows the first dot of a name is an image's extension: a mask KEY.seg.png is none."""
    base = os.path.basename(name)
    return base.count(b".") == 1 and not base.startswith(b".") and b"\0" not in name and extension(base) in EXTENSIONS
