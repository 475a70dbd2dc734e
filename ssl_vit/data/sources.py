"""Images come from a folder, a list of files, archives, or a dataset."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator

from ssl_vit.data.dataset_name import Images, is_dataset, refuse_object
from ssl_vit.data.huggingface import is_saved, open_named, open_saved
from ssl_vit.data.manifest import packed_archives
from ssl_vit.data.patterns import expand, is_shards
from ssl_vit.data.shards import open_shards
from ssl_vit.data.source import EXTENSIONS, ImageFile, Source, build_source, extension, require
from ssl_vit.errors import UserError

__all__ = ["EXTENSIONS", "Source", "open_source", "require"]

LISTS = ("txt", "lst")


def open_source(images: Images, outside_links: bool = False) -> Source:
    """Open images: a folder with its sub-folders, a list of paths (.txt, .lst), archives, or a dataset.

    Archives are a folder of them, or their path or URL, with braces where there are several: "train-{000..099}.tar".
    A dataset of the library `datasets` is a folder that its save_to_disk wrote, or "hf:owner/name,split=train"; in
    Python also the object, or any map-style one of PIL images, as torchvision's.

    Paths in a list are relative to the list's folder, and its order is kept; a folder's images are sorted by name.
    Labels are the first-level sub-folders, if every image lies in one and there are at least two. Hidden entries,
    unreadable folders, and links that lead out of the folder are left out and counted in ``skipped``; with
    `outside_links` such links are followed. Raises UserError.
    """
    if not isinstance(images, (str, os.PathLike)):
        from ssl_vit.data.objects import open_object  # needs torch, which paths do not

        return open_object(images)
    path = os.fspath(images)
    refuse_object(path)
    if is_dataset(path):
        return open_named(path)
    if os.path.isdir(path):
        if is_saved(path):
            return open_saved(path)
        archives = _archives(path)
        return open_shards(archives, path) if archives else build_source(path, *_folder(path, outside_links))
    if is_shards(path):
        return open_shards(expand(path), path)
    if not os.path.lexists(path):
        raise UserError(f"{path}: no such folder; pass a folder of images or a text file that lists them")
    if not (os.path.isfile(path) and extension(os.fsencode(path)) in LISTS):
        raise UserError(f"{path}: neither a folder nor a list of images (.txt, .lst); pass one of them")
    return build_source(os.path.dirname(path) or ".", _listed(path), Counter())


def _archives(root: str) -> list[str]:
    """Those that a folder's manifest lists; else the tar files in it, where no image lies beside or below them."""
    if (packed := packed_archives(root)) is not None:
        return packed
    found = sorted(entry.path for entry in os.scandir(root) if entry.name.endswith(".tar") and entry.is_file())
    if not found or any(
        extension(relative) in EXTENSIONS for _, relative in _walk(os.fsencode(root), False, Counter())
    ):
        return []
    return found


def _folder(root: str, outside_links: bool) -> tuple[list[ImageFile], Counter[str]]:
    """The images below a folder, sorted, and what was left out."""
    images: list[ImageFile] = []
    skipped: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for entry, relative in _walk(os.fsencode(root), outside_links, skipped):
        kind = extension(entry.name)
        if kind not in EXTENSIONS:
            others[f".{kind} files" if kind else "files without extension"] += 1
        else:
            images.append((relative, entry.stat().st_size))
    if not images:
        raise UserError(f"{root}: no images ({', '.join(EXTENSIONS)}); {_instead(others, skipped)}")
    return sorted(images), skipped + others


def _instead(others: Counter[str], skipped: Counter[str]) -> str:
    found = [f"{count} {kind}" for kind, count in others.most_common(5)]
    left = [f"{count} {reason}" for reason, count in skipped.items()]
    text = "found " + ", ".join(found + left) if found or left else "the folder is empty"
    own = "; copy the images into the folder, or list their paths in a text file (.txt) and pass that"
    hint = own if skipped[_OUTSIDE] else "; pass a folder of images"
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


def _listed(path: str) -> list[ImageFile]:
    """The images that a text file names."""
    folder = os.fsencode(os.path.dirname(path) or ".")
    with open(path, "rb") as file:
        lines = file.read().splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}: {os.fsdecode(line)!r}"
        if extension(line) not in EXTENSIONS:
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
