"""Where images come from: a folder or a list of files. Opens no image and imports no torch."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ssl_vit.errors import UserError

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif")
LISTS = ("txt", "lst")

_Found = tuple[bytes, int]  # path relative to the root, size in bytes


@dataclass(frozen=True, eq=False)
class Source:
    """Image files in a fixed order, with labels where sub-folders give them.

    Names live in one block of bytes: two million `str` objects would be copied into every forked worker, as counting
    references to them writes to their memory.
    """

    root: str
    classes: tuple[str, ...]  # empty without labels
    types: dict[str, int]  # extension -> files
    skipped: dict[str, int]  # reason -> entries that were left out
    fingerprint: dict[str, int | str]  # images, bytes, sha256 of names and sizes
    _names: bytes = field(repr=False)
    _ends: NDArray[np.int64] = field(repr=False)
    _labels: NDArray[np.int32] = field(repr=False)  # empty without labels

    def __len__(self) -> int:
        return len(self._ends)

    def name(self, index: int) -> str:
        """The path relative to the root; bytes that are not UTF-8 come as surrogates, as in `os.fsdecode`."""
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._names[start : int(self._ends[index])])

    def path(self, index: int) -> str:
        """The path to open."""
        return os.path.join(self.root, self.name(index))

    def label(self, index: int) -> int | None:
        """The number of the image's class in `classes`."""
        return int(self._labels[index]) if self.classes else None

    @property
    def labels(self) -> NDArray[np.int32]:
        """All labels [N]; empty without classes."""
        return self._labels


def open_source(path: str | os.PathLike[str], outside_links: bool = False) -> Source:
    """A folder, searched with its sub-folders, or a text file (.txt, .lst) with one image path a line.

    Paths in a list are relative to the list's folder, and its order is kept; a folder's images are sorted by name.
    Labels are the first-level sub-folders, if every image lies in one and there are at least two. Hidden entries,
    unreadable folders, and links that lead out of the folder are left out and counted in ``skipped``; with
    `outside_links` such links are followed. Raises UserError.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        return _build(path, *_folder(path, outside_links))
    if not os.path.lexists(path):
        raise UserError(f"{path}: no such folder; pass a folder of images or a text file that lists them")
    if not (os.path.isfile(path) and _extension(os.fsencode(path)) in LISTS):
        raise UserError(f"{path}: neither a folder nor a list of images (.txt, .lst); pass one of them")
    return _build(os.path.dirname(path) or ".", _listed(path), Counter())


def require(source: Source, batch_size: int) -> None:
    """Raise UserError if the images do not fill one (global) batch."""
    if len(source) < batch_size:
        raise UserError(
            f"{source.root}: {len(source)} images are fewer than a batch of {batch_size}; "
            f"add images or lower the batch size to {len(source)} or less"
        )


def _build(root: str, found: list[_Found], skipped: Counter[str]) -> Source:
    names = [name for name, _ in found]
    digest = hashlib.sha256()
    for name, size in found:
        digest.update(name + b"\0%d\0" % size)
    folders = [name.split(b"/", 1)[0] if b"/" in name else b"" for name in names]
    classes = sorted(set(folders))
    labelled = len(classes) > 1 and not {b"", b"..", b"."} & set(classes)
    number = {name: i for i, name in enumerate(classes)}
    return Source(
        root=root,
        classes=tuple(os.fsdecode(name) for name in classes) if labelled else (),
        types=dict(Counter(_extension(name) for name in names).most_common()),
        skipped=dict(skipped),
        fingerprint={"images": len(found), "bytes": sum(size for _, size in found), "sha256": digest.hexdigest()},
        _names=b"".join(names),
        _ends=np.cumsum([len(name) for name in names], dtype=np.int64),
        _labels=np.array([number[name] for name in folders] if labelled else [], dtype=np.int32),
    )


def _extension(name: bytes) -> str:
    return os.fsdecode(os.path.splitext(name)[1][1:].lower())


def _folder(root: str, outside_links: bool) -> tuple[list[_Found], Counter[str]]:
    """The images below a folder, sorted, and what was left out."""
    images: list[_Found] = []
    skipped: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for entry, relative in _walk(os.fsencode(root), outside_links, skipped):
        extension = _extension(entry.name)
        if extension not in EXTENSIONS:
            others[f".{extension}" if extension else "without extension"] += 1
        else:
            images.append((relative, entry.stat().st_size))
    if not images:
        raise UserError(f"{root}: no images ({', '.join(EXTENSIONS)}); {_instead(others, skipped)}")
    return sorted(images), skipped


def _instead(others: Counter[str], skipped: Counter[str]) -> str:
    found = [f"{count} {kind}" for kind, count in others.most_common(5)]
    left = [f"{count} {reason}" for reason, count in skipped.items()]
    text = "found " + ", ".join(found + left) if found or left else "the folder is empty"
    hint = "; pass outside_links to follow the links" if skipped[_OUTSIDE] else "; pass a folder of images"
    return text + hint


_OUTSIDE = "links that lead out of the folder"


def _walk(root: bytes, outside_links: bool, skipped: Counter[str]) -> Iterator[tuple[os.DirEntry[bytes], bytes]]:
    """Every regular file below root with its relative path.

    Real folders come before linked ones and every folder is entered once, by its real path, so loops of links end
    and a folder within the root is never counted again through a link.
    """
    top = os.path.realpath(root)
    waiting, linked, entered = [b""], list[bytes](), set[bytes]()
    while waiting or linked:
        folder = waiting.pop() if waiting else linked.pop(0)
        real = os.path.realpath(os.path.join(root, folder))
        if real in entered:
            continue
        entered.add(real)
        try:
            entries = sorted(os.scandir(os.path.join(root, folder)), key=lambda entry: entry.name)
        except OSError:
            skipped["folders that cannot be read"] += 1
            continue
        for entry in entries:
            relative = os.path.join(folder, entry.name)
            if entry.name.startswith(b"."):
                skipped["hidden entries"] += 1
            elif entry.is_symlink() and not outside_links and not _within(top, entry.path):
                skipped[_OUTSIDE] += 1
            elif os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                (linked if entry.is_symlink() else waiting).append(relative)
            elif os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file():
                yield entry, relative
            else:
                skipped["entries that are no regular files"] += 1


def _within(top: bytes, path: bytes) -> bool:
    real = os.path.realpath(path)
    return real == top or real.startswith(top.rstrip(b"/") + b"/")


def _listed(path: str) -> list[_Found]:
    """The images that a text file names."""
    folder = os.fsencode(os.path.dirname(path) or ".")
    with open(path, "rb") as file:
        lines = file.read().splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}: {os.fsdecode(line)!r}"
        if _extension(line) not in EXTENSIONS:
            raise UserError(f"{where} is no image ({', '.join(EXTENSIONS)}); list one image path a line")
        try:
            status = os.stat(os.path.join(folder, line))
        except (OSError, ValueError) as error:
            raise UserError(f"{where} cannot be read ({error}); paths are relative to the list's folder") from error
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{where} is not a regular file; remove the line")
        found.append((line, status.st_size))
    if not found:
        raise UserError(f"{path}: the list is empty; list one image path a line")
    return found
