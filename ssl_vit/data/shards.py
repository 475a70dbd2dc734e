"""Images in tar archives, as WebDataset lays them out: KEY.jpg, beside which KEY.cls or KEY.seg.png are left out.

Headers are read once and remembered, so that any image can be read by itself: order, exact resuming and bad files are
those of a folder, whatever the number of archives, ranks and workers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ssl_vit.data.decode import Member
from ssl_vit.data.remote import is_url, open_url, url_state
from ssl_vit.data.source import (
    BEGINNING,
    EXTENSIONS,
    UNNAMED,
    Source,
    begins_as_image,
    build_source,
    extension,
    has_own_extension,
    kind_of,
)
from ssl_vit.data.tar import DamagedTar, TarMember, entries, packed_by
from ssl_vit.errors import UserError
from ssl_vit.files import write_whole

log = logging.getLogger("ssl_vit")

_FEW = 8  # kinds of names of images
_FORMAT = 2  # of the remembered headers


@dataclass(frozen=True, eq=False)
class ShardSource(Source):
    """The images lie in archives; `name` is ARCHIVE:KEY.EXTENSION."""

    archives: tuple[str, ...]
    _shown: tuple[str, ...] = field(repr=False)  # the archives' names, as short as they can be told apart
    _archive: NDArray[np.int32] = field(repr=False)  # of each image
    _offsets: NDArray[np.int64] = field(repr=False)

    def name(self, index: int) -> str:
        """Return the archive's name, and the image's in it."""
        return f"{self._shown[self._archive[index]]}:{super().name(index)}"

    def path(self, index: int) -> Member:
        """Return the place of the image in its archive."""
        archive = self.archives[self._archive[index]]
        return Member(archive, int(self._offsets[index]), int(self.sizes[index]), super().name(index))

    def shared_by(self, readers: int) -> None:
        """Say what it means that so many processes, of all ranks, read fewer archives, if they do."""
        if len(self.archives) < readers:
            log.info(
                "%s: %d archives for %d reading processes; images, not archives, are divided among them, so none idles",
                self.root,
                len(self.archives),
                readers,
            )


def open_shards(files: Sequence[str], root: str, beside: Counter[str] | None = None) -> ShardSource:
    """Open the images of archives, in the archives' order; `root` is what messages call them. Raises UserError.

    beside: other files of the folder, by kind.
    """
    heads = [_head(file) for file in files]
    skipped = sum((Counter(head.others) for head in heads), Counter(beside))
    found = [(name, size) for head in heads for name, size in zip(head.names, head.sizes.tolist(), strict=True)]
    if not found:
        there = ", ".join(f"{count} {kind}" for kind, count in skipped.most_common(5))
        raise UserError(
            f"{root}: no images ({', '.join(EXTENSIONS)}) in {len(files)} archives; found {there or 'nothing'}; name "
            "other archives"
        )
    for file, head in zip(files, heads, strict=True):
        _refuse_duplicates(file, head.names)
    lengths = [len(head.names) for head in heads]
    lost = sum(head.lost for head in heads) / max(sum(head.length for head in heads), 1)
    damage = tuple(f"{file}: {head.damage}" for file, head in zip(files, heads, strict=True) if head.damage)
    times = np.repeat(np.array([0 if is_url(file) else os.stat(file).st_mtime_ns for file in files]), lengths)
    return ShardSource(
        **vars(build_source(root, found, skipped, times, damage, lost)) | {"types": _types(name for name, _ in found)},
        archives=tuple(files),
        _shown=_short_names(files),
        _archive=np.repeat(np.arange(len(files), dtype=np.int32), lengths),
        _offsets=np.concatenate([head.offsets for head in heads]),
    )


def _types(names: Iterable[bytes]) -> dict[str, int]:
    """Images by what follows the first dot, as left.png and right.png of a key; where that is many, the last."""
    whole = Counter(os.fsdecode(os.path.basename(name)).partition(".")[2].lower() or UNNAMED for name in names)
    if len(whole) <= _FEW:
        return dict(whole.most_common())
    last = Counter[str]()
    for kind, count in whole.items():
        last[kind.rpartition(".")[2]] += count
    return dict(last.most_common())


def _short_names(files: Sequence[str]) -> tuple[str, ...]:
    """The files' names, with as much of their folders as tells them apart."""
    parts = [file.split("/") for file in files]
    last = 1
    while len({tuple(each[-last:]) for each in parts}) < len(set(files)):
        last += 1
    return tuple("/".join(each[-last:]) for each in parts)


def _refuse_duplicates(file: str, names: list[bytes]) -> None:
    """A key names one image of its archive; another archive may number its own from the same."""
    keys = Counter(os.path.splitext(name)[0] for name in names)
    key, count = keys.most_common(1)[0] if keys else (b"", 0)
    if count > 1:
        raise UserError(f"{file}: two images have the key {os.fsdecode(key)!r}; rename or remove one of them")


@dataclass(frozen=True)
class _Head:
    """What an archive's headers say."""

    names: list[bytes]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    others: dict[str, int]  # files that are left out, by kind
    length: int  # bytes of the archive
    lost: int  # bytes of it that can't be read for a damaged header
    damage: str  # empty where there is none


def _head(file: str) -> _Head:
    """The headers of an archive, remembered in the user's cache until the archive changes."""
    state = url_state(file) if is_url(file) else _state(file)
    key = hashlib.sha256(f"{_FORMAT} {file if is_url(file) else os.path.abspath(file)} {state}".encode()).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssl_vit" / "shards" / f"{key}.npz"
    if (kept := _remembered(cache)) is not None:
        return kept
    head = _read_head(file)
    names = np.frombuffer(b"".join(name + b"\0" for name in head.names), dtype=np.uint8)
    counts, said = np.array([head.length, head.lost]), np.array(json.dumps([head.others, head.damage]))

    def write(to: BinaryIO) -> None:
        np.savez(to, names=names, offsets=head.offsets, sizes=head.sizes, counts=counts, said=said)

    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_whole(cache, write)
    except OSError:  # no place to remember it: it is read again the next time
        pass
    return head


def _remembered(cache: Path) -> _Head | None:
    """What a file of the cache holds; None where there is none, or one that a crash or a full disk has damaged."""
    try:
        with np.load(cache, allow_pickle=False) as kept:
            found = kept["names"].tobytes().split(b"\0")[:-1]
            (length, lost), (others, damage) = kept["counts"].tolist(), json.loads(str(kept["said"]))
            head = _Head(found, kept["offsets"], kept["sizes"], dict(others), length, lost, damage)
    except Exception:  # NumPy, zipfile and zlib each raise their own; the archive itself is there to be read
        return None
    return head if len(head.names) == len(head.offsets) == len(head.sizes) else None


def _state(file: str) -> str:
    status = os.stat(file)
    return f"{status.st_size} {status.st_mtime_ns}"


def _read_head(file: str) -> _Head:
    found, others, lost, damage = list[TarMember](), Counter[str](), 0, ""
    with open_url(file) if is_url(file) else open(file, "rb") as opened:
        length = opened.seek(0, os.SEEK_END)
        if (program := packed_by(opened)) is not None:
            raise UserError(
                f"{file}: compressed by {program}, so that no image in it can be read by itself; unpack it "
                f"({program} -d) and pass what comes of it"
            )
        try:
            for entry in entries(opened, length, others):
                if (kind := _left_out(entry, opened)) is None:
                    found.append(entry)
                else:
                    others[kind] += 1
        except DamagedTar as error:
            lost, damage = length - error.offset, error.reason
    beside = _beside([entry.name for entry in found])
    others[_BESIDE] += len(beside)
    found = [entry for entry in found if entry.name not in beside]
    offsets, sizes = (
        np.array(numbers, dtype=np.int64) for numbers in ([e.offset for e in found], [e.size for e in found])
    )
    return _Head([entry.name for entry in found], offsets, sizes, dict(+others), length, lost, damage)


def _left_out(entry: TarMember, archive: BinaryIO) -> str | None:
    """What a member is that is no image; None for one."""
    base = os.path.basename(entry.name)
    if base.startswith(b".") or b"\0" in entry.name:
        return "hidden entries"
    if has_own_extension(base):
        return None if extension(base) in EXTENSIONS else kind_of(base)
    archive.seek(entry.offset)
    return None if begins_as_image(archive.read(BEGINNING)) else kind_of(base)


_BESIDE = "images beside another of their key, as KEY.seg.png beside KEY.png"


def _beside(names: Sequence[bytes]) -> set[bytes]:
    """The images that WebDataset counts to another one: masks and the like.

    KEY.WORD.png is one where there is a KEY.png. In all other names only the last dot counts, as in scan.2023.01.png.

    >>> sorted(_beside([b"a.jpg", b"a.seg.png", b"b.seg.png", b"c.2.png", b"c.png"]))
    [b'a.seg.png']
    """
    plain = {os.path.splitext(name)[0] for name in names if os.path.basename(name).count(b".") <= 1}
    found = set()
    for name in names:
        folder, base = os.path.split(name)
        key, *words, _ = base.split(b".") if base.count(b".") > 1 else (base, b"")
        if any(not word.isdigit() for word in words) and os.path.join(folder, key) in plain:
            found.add(name)
    return found
