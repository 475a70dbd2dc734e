"""A text file lists images, a path a line, in whatever encoding the program that wrote it prefers."""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections import Counter

from ssl_vit.data.folder import is_image
from ssl_vit.data.source import EXTENSIONS, Source, build_source, extension
from ssl_vit.errors import UserError

LISTS = ("txt", "lst")

_MARKS = {  # the longer one first: UTF-32's begins as UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def open_list(path: str) -> Source:
    """Open the images that a text file names, in its order; UserError for a line that names none."""
    folder = os.fsencode(os.path.dirname(path) or ".")
    with open(path, "rb") as file:
        lines = _lines(file.read(), path)
    found, times = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name = line if os.path.lexists(os.path.join(folder, line)) else line.strip()
        status = _looked_at(name, folder, f"{path}, line {number}: {os.fsdecode(name)!r}")
        found.append((name, status.st_size))
        times.append(status.st_mtime_ns)
    if not found:
        raise UserError(f"{path}: the list is empty; list one image path a line")
    return build_source(os.path.dirname(path) or ".", found, Counter(), times)


def _looked_at(name: bytes, folder: bytes, where: str) -> os.stat_result:
    place = os.path.join(folder, name)
    try:
        status = os.stat(place)
    except (OSError, ValueError) as error:
        if extension(name) not in EXTENSIONS:
            alone = "; a line is a path alone, without a label" if _labelled(name) else ""
            raise UserError(
                f"{where} is no image ({', '.join(EXTENSIONS)}){alone}; list one image path a line"
            ) from error
        raise UserError(f"{where} cannot be read ({error}); paths are relative to the list's folder") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{where} is not a regular file; remove the line")
    if not is_image(name, place):
        raise UserError(f"{where} is no image ({', '.join(EXTENSIONS)}); list one image path a line")
    return status


def _labelled(line: bytes) -> bool:
    """Whether a line begins with an image's path, and goes on."""
    return extension(re.split(rb"[\s,;]", line)[0]) in EXTENSIONS


def _lines(data: bytes, path: str) -> list[bytes]:
    """The lines, as bytes of UTF-8 where the encoding is said by a mark or is plainly UTF-16; else as they are.

    Where each ends in a zero byte, that is what ends it.
    """
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    if encoding is None and b"\0" in data[:2]:
        encoding = "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"
    elif encoding is None and b"\0" in data:  # as find -print0 ends its names
        return data.split(b"\0")
    if encoding is not None:
        try:
            data = data.decode(encoding).encode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}: cannot be read as {encoding.upper()} ({error.reason}); save it as UTF-8"
            ) from error
    return data.splitlines()
