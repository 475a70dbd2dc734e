"""Packing images into tar archives: few large files instead of millions of small ones, read in any order all the same.

An archive is made as a whole, then renamed, and an image's bytes depend on its file alone: a packing that was killed
is gone on with by the same command, and gives the same archives.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import os
import tarfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from ssl_vit.data.bad import BadList
from ssl_vit.data.decode import BadImage, Member, Place, decode, header, image_type, read_bytes
from ssl_vit.data.inventory import INVENTORY, changes_since, take_inventory, write_inventory
from ssl_vit.data.manifest import FORMAT, MANIFEST
from ssl_vit.data.measure import look, measure
from ssl_vit.data.source import Source, extension, has_own_extension
from ssl_vit.data.values import Pixels
from ssl_vit.errors import UserError
from ssl_vit.files import write_whole
from ssl_vit.progress import Advance, progress
from ssl_vit.settings import MAX_BAD

log = logging.getLogger("ssl_vit")

Packed = tuple[bytes, str] | BadImage  # an image's file as it will be in the archive, and its extension

ARCHIVE = 256e6  # bytes that an archive has about, of files as they are
MOST = 10_000  # images in one
QUALITY = 95  # of JPEG, where an image is made smaller
_PLAN = "pack.json"
_INSTEAD = "remove it, or pack to another folder"


def pack(source: Source, out: Path, size: int | None = None, max_bad: float = MAX_BAD) -> dict[str, Any]:
    """Write the archives and ``manifest.json`` (images, bytes, SHA-256 of each) to a new folder `out`; the manifest.

    size: images whose short side is longer become JPEG of quality 95 with a short side of so many pixels; all others,
    and those of more than 8 bits or of bands that are no colours, stay the files they are.
    Unreadable images are named and left out. Until it is whole, the folder's name ends in ``.partial``.
    Raises UserError, and RunFailed for too many unreadable images.
    """
    folder = out.with_name(f"{out.name}.partial")
    per = max(1, min(MOST, int(ARCHIVE * len(source) / max(int(source.fingerprint.get("bytes", 0)), 1))))
    _begin(folder, {"format": FORMAT, "source": source.fingerprint, "size": size, "images_each": per}, source)
    pixels = Pixels() if size is None else _colours(source)
    keys, bad = _keys(source), BadList(len(source), max_bad, consequence="it is left out", setting="--max-bad")
    shards = []
    with contextlib.ExitStack() as stack:
        advance = stack.enter_context(progress("packing", len(source)))
        workers = stack.enter_context(ProcessPoolExecutor()) if size is not None else None
        for number, start in enumerate(range(0, len(source), per)):
            rows = range(start, min(start + per, len(source)))
            prepare = partial(_prepare, size=size, pixels=pixels)
            shards.append(_shard(folder / f"shard-{number:06d}.tar", source, rows, keys, prepare, workers, advance))
            bad.note([(entry["file"], entry["reason"]) for entry in shards[-1]["left_out"]])
    return _finish(folder, out, source, size, shards)


def _begin(folder: Path, plan: dict[str, Any], source: Source) -> None:
    """A new folder, or that of the same packing of the same images."""
    inventory = take_inventory(source)
    if folder.exists() and any(folder.iterdir()):
        try:
            found = json.loads((folder / _PLAN).read_bytes())
        except (OSError, ValueError):
            found = None
        if found != plan:
            raise UserError(f"{folder}: begun with other images or another size; {_INSTEAD}")
        if changed := changes_since(folder, inventory):
            raise UserError(f"{folder}: begun with images that have changed since ({changed}); {_INSTEAD}")
    folder.mkdir(parents=True, exist_ok=True)
    write_inventory(folder / INVENTORY, inventory)
    write_whole(folder / _PLAN, lambda file: file.write(json.dumps(plan).encode()))


def _keys(source: Source) -> list[str]:
    """A name in the archives for each image, without extension: its path, with no dots in the file's name.

    Archives take what follows the first dot for the extension, and one key for one image.
    """
    keys, taken = [], set()
    for i in range(len(source)):
        place = source.path(i)
        path = Path(source.name(i) if isinstance(place, str) else place.name)
        folders = [part for part in path.parent.parts if part not in ("/", "..", ".")]
        stem = path.stem if has_own_extension(os.fsencode(path.name)) else path.name
        key = first = "/".join([*folders, stem.replace(".", "_") or "_"])
        number = 1
        while key in taken:
            number += 1
            key = f"{first}_{number}"
        taken.add(key)
        keys.append(key)
    return keys


def _shard(
    path: Path,
    source: Source,
    rows: range,
    keys: list[str],
    prepare: Callable[[Place], Packed],
    workers: ProcessPoolExecutor | None,
    advance: Advance,
) -> dict[str, Any]:
    """One archive, if it is not there yet, and what the manifest says of it."""
    note = path.with_name(f"{path.name}.json")
    if note.exists():
        advance(len(rows))
        return dict(json.loads(note.read_bytes()))
    places, left_out = [source.path(i) for i in rows], list[tuple[str, str]]()

    def fill(file: BinaryIO) -> None:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for i, packed in zip(
                rows, workers.map(prepare, places, chunksize=8) if workers else map(prepare, places), strict=True
            ):
                advance(1)
                if isinstance(packed, BadImage):
                    left_out.append((source.name(i), packed.reason))
                    continue
                info = tarfile.TarInfo(f"{keys[i]}.{packed[1]}")
                info.size = len(packed[0])
                tar.addfile(info, io.BytesIO(packed[0]))

    write_whole(path, fill)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    said = {
        "name": path.name,
        "images": len(rows) - len(left_out),
        "bytes": path.stat().st_size,
        "sha256": digest,
        "left_out": [{"file": name, "reason": reason} for name, reason in left_out],
    }
    write_whole(note, lambda file: file.write(json.dumps(said).encode()))
    return said


def _colours(source: Source) -> Pixels:
    """Which bands of images with opacity are their colours: what is called opacity may be near infrared."""
    measured = measure(look(source), low_high=None, max_bad=1.0)
    if measured.pixels.bands is not None:
        log.warning("%s: what is made smaller has bands %s: %s", source.root, measured.pixels.bands, measured.bands_why)
    return measured.pixels


def _prepare(place: Place, size: int | None, pixels: Pixels) -> Packed:
    """An image's file as it will be in the archive, and its extension."""
    try:
        said = header(place)
        if min(said.width, said.height) <= (size or math.inf) or not said.plain:
            data = read_bytes(place)
            named = isinstance(place, str | Member) and has_own_extension(os.fsencode(str(place)))
            return data, extension(os.fsencode(str(place))) if named else image_type(data)
        assert size is not None
        image = Image.fromarray(decode(place, pixels, want=2 * size))
    except BadImage as error:
        return error
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    buffer = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue(), "jpg"


def _finish(folder: Path, out: Path, source: Source, size: int | None, shards: list[dict[str, Any]]) -> dict[str, Any]:
    """The manifest instead of the notes, then the folder's own name."""
    manifest = {
        "format": FORMAT,
        "images": sum(shard["images"] for shard in shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "size": size,
        "jpeg_quality": None if size is None else QUALITY,
        "source": source.fingerprint,
        "left_out": [entry for shard in shards for entry in shard.pop("left_out")],
        "shards": shards,
    }
    write_whole(folder / MANIFEST, lambda file: file.write(json.dumps(manifest, indent=1).encode()))
    listed = {MANIFEST, *(shard["name"] for shard in shards)}
    for note in folder.iterdir():  # and what a kill has left
        if note.name not in listed:
            note.unlink()
    if out.exists():
        out.rmdir()  # empty, as the command line has checked
    os.replace(folder, out)
    return manifest
