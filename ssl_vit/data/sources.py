"""Images come from a folder, a list of files, archives, a dataset, or several of these."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Sequence

from ssl_vit.data.dataset_name import Images, is_dataset, refuse_object, several
from ssl_vit.data.folder import holds_images, is_image, open_folder
from ssl_vit.data.huggingface import is_saved, open_named, open_saved
from ssl_vit.data.joined import join
from ssl_vit.data.listing import LISTS, open_list
from ssl_vit.data.manifest import MANIFEST, packed_archives
from ssl_vit.data.patterns import expand, is_pattern, is_shards, matches
from ssl_vit.data.remote import is_url
from ssl_vit.data.shards import open_shards
from ssl_vit.data.source import EXTENSIONS, Source, build_source, extension, kind_of, require
from ssl_vit.data.unread import what_to_do
from ssl_vit.errors import UserError

__all__ = ["EXTENSIONS", "Source", "open_source", "require"]


def open_source(images: Images, outside_links: bool = False) -> Source:
    """Open images: a folder with its sub-folders, a list of paths (.txt, .lst), archives, a dataset, or several.

    Archives are a folder of them, or their path or URL, with braces where there are several: "train-{000..099}.tar".
    A dataset of the library `datasets` is a folder that its save_to_disk wrote, or "hf:owner/name,split=train"; in
    Python also the object, or any map-style one of PIL images, as torchvision's. Several are a list of such texts, or
    a pattern with * and ?; of images or archives alone they are one source.

    Paths in a list are relative to the list's folder, and its order is kept; a folder's images are sorted by name.
    Labels are the first-level sub-folders, if every image lies in one and there are at least two. Hidden entries,
    unreadable folders, files that are no images and links that lead out of the folder are left out and counted in
    ``skipped``; with `outside_links` such links are followed. Raises UserError.
    """
    if (texts := several(images)) is not None:
        return _open_several(texts, outside_links)
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
        archives, others = _archives(path)
        return open_shards(archives, path, others) if archives else open_folder(path, outside_links)
    if is_shards(path):
        return open_shards(expand(path), path)
    if is_pattern(path):
        return _open_several(matches(path), outside_links, path)
    if is_url(path):
        raise UserError(f"{path}: behind a URL only tar archives are read; name them, as s3://mine/{{000..099}}.tar")
    if not os.path.lexists(path):
        raise UserError(f"{path}: no such folder; pass a folder of images or a text file that lists them")
    if not (os.path.isfile(path) and extension(os.fsencode(path)) in LISTS):
        raise UserError(f"{path}: {_what_it_is(path)}")
    return open_list(path)


def _what_it_is(path: str) -> str:
    """What a file is that is no source, and what to do."""
    folder, name = os.path.dirname(path) or ".", os.fsencode(os.path.basename(path))
    if os.path.isfile(path) and is_image(name, path):
        return f"neither a folder nor a list of images, but a single image; pass its folder, {folder}"
    if advice := what_to_do(kind_of(name).removeprefix(".").removesuffix(" files"), folder):
        return advice
    return "neither a folder nor a list of images (.txt, .lst); pass one of them"


def _open_several(paths: Sequence[str], outside_links: bool, pattern: str | None = None) -> Source:
    """Images alone, or archives alone, are one source; all else is opened one by one and joined."""
    if len(paths) == 1 and pattern is None:
        return open_source(paths[0], outside_links)
    _refuse_twice(paths)
    if all(is_shards(path) for path in paths):
        return open_shards([file for path in paths for file in expand(path)], pattern or ", ".join(paths))
    files = [path for path in paths if os.path.isfile(path)]
    if pattern is not None and 0 < len(files) < len(paths):
        raise UserError(
            f"{pattern}: names {len(paths) - len(files)} folders and {len(files)} files, the first {files[0]}; end it "
            "with / to name folders alone, or pass the folder that they are in"
        )
    pictures = [path for path in files if is_image(os.fsencode(os.path.basename(path)), path)]
    if pictures and pattern is None and len(pictures) < len(paths):
        odd = next(path for path in paths if path not in set(pictures))
        raise UserError(f"{pictures[0]} is a single image and {odd} is none; give images alone, or folders alone")
    if pictures:
        return _open_files(pictures, Counter(kind_of(os.fsencode(path)) for path in set(files) - set(pictures)))
    opened = [open_source(path, outside_links) for path in paths]
    return join(opened) if len(opened) > 1 else opened[0]


def _open_files(paths: Sequence[str], others: Counter[str]) -> Source:
    """Open images that are named one by one, and sort them as a folder's."""
    full = sorted(os.path.abspath(path) for path in paths)
    root = os.path.commonpath([os.path.dirname(path) for path in full])
    status = [os.stat(path) for path in full]
    names = [os.fsencode(os.path.relpath(path, root)) for path in full]
    found = [(name, each.st_size) for name, each in zip(names, status, strict=True)]
    return build_source(root, found, others, [each.st_mtime_ns for each in status])


def _refuse_twice(paths: Sequence[str]) -> None:
    """UserError where one of the sources is another, or lies within it: its images would count twice."""
    real = sorted((os.path.join(os.path.realpath(path), ""), path) for path in paths if os.path.exists(path))
    for (outer, a), (inner, b) in itertools.pairwise(real):
        if inner.startswith(outer):
            within = "is given twice" if inner == outer else f"lies within {a}"
            raise UserError(f"{b}: {within}, so that its images would count twice; leave one of them out")


def _archives(root: str) -> tuple[list[str], Counter[str]]:
    """Those that a folder's manifest lists; else the tar files in it, where no image lies beside or below them.

    And what else is in the folder, by kind; empty where there are no archives.
    """
    packed = packed_archives(root)
    entries = [entry for entry in os.scandir(root) if not entry.name.startswith(".") and os.path.isfile(entry.path)]
    found = packed or sorted(entry.path for entry in entries if entry.name.lower().endswith(".tar"))
    if not found or (packed is None and holds_images(root)):
        return [], Counter()
    known = {os.path.basename(path) for path in found} | ({MANIFEST} if packed else set())
    return found, Counter(kind_of(os.fsencode(entry.name)) for entry in entries if entry.name not in known)
