"""The images below a folder, sorted by name, and what else is there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

from ssl_vit.data.source import (
    BEGINNING,
    EXTENSIONS,
    Source,
    begins_as_image,
    build_source,
    extension,
    has_own_extension,
    kind_of,
)
from ssl_vit.data.unread import what_to_do
from ssl_vit.errors import UserError

OUTSIDE = "links that lead out of the folder"
LINKS_HINT = "to follow them, add --outside-links (in a configuration data.outside_links: true)"


def open_folder(root: str, outside_links: bool) -> Source:
    """Open the images below a folder; what is left out is counted by kind. UserError where there is none."""
    images: list[tuple[bytes, int, int]] = []  # name, bytes, time
    skipped, others = Counter[str](), Counter[str]()
    for entry, relative in _walk(os.fsencode(root), outside_links, skipped):
        if is_image(entry.name, entry.path):
            status = entry.stat()
            images.append((relative, status.st_size, status.st_mtime_ns))
        else:
            others[kind_of(entry.name)] += 1
    if not images:
        raise UserError(f"{root}: no images ({', '.join(EXTENSIONS)}); {_instead(root, others, skipped)}")
    images.sort()
    return build_source(root, [image[:2] for image in images], skipped + others, [image[2] for image in images])


def is_image(name: bytes, path: bytes | str) -> bool:
    """Tell whether a file is taken for an image: by its extension, or by its first bytes where it has none."""
    if has_own_extension(name):
        return extension(name) in EXTENSIONS
    try:
        with open(path, "rb") as file:
            return begins_as_image(file.read(BEGINNING))
    except OSError:
        return False


def holds_images(root: str) -> bool:
    """Tell whether any image lies in a folder or below it."""
    found = _walk(os.fsencode(root), False, Counter())
    return any(is_image(entry.name, entry.path) for entry, _ in found)


def _instead(root: str, others: Counter[str], skipped: Counter[str]) -> str:
    """What was found, and what to do."""
    found = [f"{count} {kind}" for kind, count in (others.most_common(5) + skipped.most_common())]
    text = "found " + ", ".join(found) if found else "the folder is empty"
    if skipped[OUTSIDE]:
        return f"{text}; {LINKS_HINT}"
    for kind, _ in others.most_common():
        if advice := what_to_do(kind.removeprefix(".").removesuffix(" files"), root):
            return f"{text}; these are {advice}" if len(others) == 1 else f"{text}; {kind} are {advice}"
    return f"{text}; pass a folder of images"


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
        if folder and {entry.name for entry in entries} >= _OF_A_RUN:
            skipped["folders of runs"] += 1
            continue
        for entry in entries:
            relative = os.path.join(folder, entry.name)
            if entry.name.startswith(b"."):
                skipped["hidden entries"] += 1
            elif entry.is_symlink():
                if (kind := _linked(entry, top, outside_links)) is not None:
                    skipped[kind] += 1
                elif os.path.isdir(entry.path):
                    linked.append(relative)
                else:
                    yield entry, relative
            elif entry.is_dir():
                waiting.append(relative)
            elif entry.is_file():
                yield entry, relative
            else:
                skipped[_IRREGULAR] += 1


_OF_A_RUN = {b"config.yaml", b"environment.json", b"train.log"}  # whose pictures are of images, and none to learn from
_IRREGULAR = "entries that are no regular files"


def _linked(link: os.DirEntry[bytes], top: bytes, outside_links: bool) -> str | None:
    """Why a link is left out; None where it is followed."""
    if not os.path.exists(link.path):
        return "broken links"
    if not outside_links and not _within(top, link.path):
        return OUTSIDE
    return None if os.path.isdir(link.path) or os.path.isfile(link.path) else _IRREGULAR


def _within(top: bytes, path: bytes) -> bool:
    real = os.path.realpath(path)
    return real == top or real.startswith(top.rstrip(b"/") + b"/")
