"""Images in tar archives, as WebDataset lays them out: KEY.jpg, beside which KEY.cls or KEY.json are passed over.

Headers are read once and remembered, so that any image can be read by itself: order, exact resuming and bad files are
those of a folder, whatever the number of archives, ranks and workers.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_vit.data.decode import Member
from ssl_vit.data.remote import is_url, open_url, url_state
from ssl_vit.data.source import EXTENSIONS, Source, build, extension
from ssl_vit.data.tar import DamagedTar, entries
from ssl_vit.errors import UserError

_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_FORMAT = 1  # of the remembered headers


@dataclass(frozen=True, eq=False)
class ShardSource(Source):
    """Images in archives; `name` is ARCHIVE:KEY.EXTENSION."""

    archives: tuple[str, ...]
    _archive: NDArray[np.int32] = field(repr=False)  # of each image
    _offsets: NDArray[np.int64] = field(repr=False)
    _sizes: NDArray[np.int64] = field(repr=False)

    def name(self, index: int) -> str:
        """The archive's name, and the image's in it."""
        return f"{os.path.basename(self.archives[self._archive[index]])}:{super().name(index)}"

    def path(self, index: int) -> Member:
        """The place in the archive."""
        archive = self.archives[self._archive[index]]
        return Member(archive, int(self._offsets[index]), int(self._sizes[index]), super().name(index))


def is_shards(path: str) -> bool:
    """Whether a text names archives: one (.tar), several by braces, or a URL.

    >>> is_shards("train-{000..009}.tar"), is_shards("photos")
    (True, False)
    """
    return path.endswith(".tar")


def expand(pattern: str) -> list[str]:
    """The archives that a pattern with braces names, in order; UserError where a local one is missing.

    >>> expand("s3://mine/{train,val}-{08..10}.tar")[:4]
    ['s3://mine/train-08.tar', 's3://mine/train-09.tar', 's3://mine/train-10.tar', 's3://mine/val-08.tar']
    """
    pieces = re.split(r"\{([^{}]*)\}", pattern) if not os.path.exists(pattern) else [pattern]
    choices = [[piece] if i % 2 == 0 else _choices(piece, pattern) for i, piece in enumerate(pieces)]
    files = ["".join(parts) for parts in itertools.product(*choices)]
    missing = [file for file in files if not is_url(file) and not os.path.isfile(file)]
    if missing:
        found = f"{len(missing)} of {len(files)} archives missing, the first is" if len(files) > 1 else "no such file:"
        raise UserError(f"{pattern}: {found} {missing[0]}; name archives that are there")
    return files


def _choices(text: str, pattern: str) -> list[str]:
    if (found := _RANGE.fullmatch(text)) is None:
        return text.split(",")
    first, last = found.groups()
    if int(last) < int(first):
        raise UserError(f"{pattern}: {{{text}}} counts down; write the smaller number first")
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]


def open_shards(files: Sequence[str], root: str) -> ShardSource:
    """The images of archives, in the archives' order; `root` is what messages call them. Raises UserError."""
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
        **vars(build(root, found, skipped, damage, lost)),
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
        with np.load(cache, allow_pickle=False) as held:
            names = held["names"].tobytes().split(b"\0")[:-1]
            others, length, lost = held["counts"].tolist()
            return _Head(names, held["offsets"], held["sizes"], others, length, lost, str(held["damage"]))
    head = _read_head(file)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache.parent, delete=False) as staged:
            np.savez(
                staged,
                names=np.frombuffer(b"".join(name + b"\0" for name in head.names), dtype=np.uint8),
                offsets=head.offsets,
                sizes=head.sizes,
                counts=np.array([head.others, head.length, head.lost]),
                damage=np.array(head.damage),
            )
        os.replace(staged.name, cache)
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
    names, offsets, sizes = ([entry[i] for entry in found] for i in range(3))
    numbers = np.array([offsets, sizes], dtype=np.int64)
    return _Head(list(names), numbers[0], numbers[1], others, length, lost, damage)  # type: ignore[arg-type]


def _is_image(name: bytes) -> bool:
    """Whether all that follows the first dot of a name is an image's extension: a mask KEY.seg.png is none."""
    base = os.path.basename(name)
    return base.count(b".") == 1 and not base.startswith(b".") and b"\0" not in name and extension(base) in EXTENSIONS
