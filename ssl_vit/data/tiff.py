"""TIFF files as cameras, microscopes and satellites write them, which Pillow can't read or would cut to 8 bits.

Their headers are read here (TIFF 6.0, and BigTIFF); what is packed by another way than deflate is unpacked by libtiff,
through Pillow, as an image of plain bytes.
"""

from __future__ import annotations

import ctypes
import io
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, _imaging

from ssl_vit.data.caps import MAX_PIXELS, Refused, check_bytes, check_size
from ssl_vit.data.values import Deep

_PURPOSE, _WIDTH, _HEIGHT, _BITS, _PACKED, _COLOURS, _FILL = 254, 256, 257, 258, 259, 262, 266
_OFFSETS, _TURNED, _BANDS, _ROWS, _SIZES, _PLANES, _PREDICTED = 273, 274, 277, 278, 279, 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_SIZES, _EXTRA, _FORMAT, _MISSING = 322, 323, 324, 325, 338, 339, 42113
_TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 12: "d", 11: "f", 16: "Q"}
Order = Literal["<", ">"]

_MOST = 2**20  # entries of a tag
_PAGES = 16  # directories that are looked at
_DEFLATE, _LIBTIFF = (8, 32946), (5, 32773, 34925, 50000)  # LZW, PackBits, LZMA, Zstandard
_JPEG = (6, 7, 34712, 34892)
_TOGETHER = 2**25  # bytes that are unpacked at once
_AT_ONCE = 2**22  # of them, those that become values at once


def is_tiff(head: bytes) -> bool:
    """Tell by the first four bytes."""
    return head in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def hush() -> None:
    """Libtiff writes no lines to the terminal: what is wrong with a file is said where the file is named."""
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        try:
            getattr(ctypes.CDLL(_imaging.__file__), name)(None)
        except (AttributeError, OSError):  # built in another way: the lines stay
            return


def open_tiff(file: BinaryIO, max_pixels: float = MAX_PIXELS) -> Deep | None:
    """Open the first image of a TIFF file; None where it is plain, of 8 bits or less, and Pillow reads it right.

    Raises Refused for what is too large or can't be read, and nearly anything for damaged files.
    """
    layout = _Layout.of(file)
    check_size(layout.width, layout.height, max_pixels)
    layout.check(max_pixels)
    if layout.plain:
        return None
    what = f"a TIFF of {layout.bands} x {layout.kind}"
    if layout.bits < 8:
        raise Refused(f"a TIFF of {layout.bands} bands of {layout.bits} bits, which is not read; save it with 8")
    if layout.packed not in (1, *_DEFLATE, *_LIBTIFF) or layout.fill != 1 or layout.predicted not in (1, 2, 3):
        raise Refused(f"{what}, compressed in a way that is not read ({layout.packed}); save it as deflate or LZW")
    if layout.colours not in (0, 1, 2):
        raise Refused(f"{what}, whose colours (photometric {layout.colours}) are not read; save it as grey or RGB")
    return Deep(
        read=layout.read,
        format="TIFF",
        width=layout.width,
        height=layout.height,
        kind=layout.kind,
        bands=layout.bands,
        colours=layout.named,
        opacity=layout.opacity,
        missing=layout.missing,
        inverted=layout.colours == 0,
        orientation=lambda: layout.turned,
        pages=lambda: has_pages(file),
    )


@dataclass(frozen=True)
class _Layout:
    """The header says where the image's chunks, strips or tiles, are and what a value is."""

    file: BinaryIO
    order: Order
    width: int
    height: int
    bits: int
    format: int  # 1 unsigned, 2 signed, 3 float
    bands: int
    packed: int
    colours: int  # photometric interpretation
    extra: tuple[int, ...]
    separate: bool  # each band in chunks of its own
    predicted: int
    fill: int
    turned: int
    missing: float | None
    tiled: bool
    chunk: tuple[int, int]  # height, width
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, file: BinaryIO) -> _Layout:
        order, tags = _tags(file)

        def one(tag: int, default: int) -> int:
            return int((tags.get(tag) or (default,))[0])

        width, height = one(_WIDTH, 0), one(_HEIGHT, 0)
        bits = cast(tuple[int, ...], tags.get(_BITS, (1,)))
        if width < 1 or height < 1 or len(set(bits)) != 1:
            raise Refused(f"a TIFF of {width} x {height} pixels of {', '.join(map(str, bits))} bits, which is not read")
        tiled = _TILE_WIDTH in tags
        offsets, sizes = (
            tags.get(a if tiled else b, ()) for a, b in ((_TILE_OFFSETS, _OFFSETS), (_TILE_SIZES, _SIZES))
        )
        chunk = (one(_TILE_HEIGHT, 0), one(_TILE_WIDTH, 0)) if tiled else (min(one(_ROWS, height), height), width)
        return cls(
            file,
            order,
            width,
            height,
            bits[0],
            one(_FORMAT, 1),
            one(_BANDS, 1),
            one(_PACKED, 1),
            one(_COLOURS, 1),
            tuple(int(kind) for kind in tags.get(_EXTRA, ())),
            one(_PLANES, 1) == 2,
            one(_PREDICTED, 1),
            one(_FILL, 1),
            one(_TURNED, 1),
            _number(tags.get(_MISSING)),
            tiled,
            chunk,
            tuple(int(place) for place in offsets),
            tuple(int(size) for size in sizes),
        )

    def check(self, max_pixels: float) -> None:
        """Raise Refused where the image or one of its chunks is too large for memory."""
        each = self.bands * self.bits / 8
        size, tile = f"{self.width} x {self.height}", f"{self.chunk[1]} x {self.chunk[0]}"
        check_bytes(self.width * self.height * each, f"a TIFF of {size} pixels of {self.bands} bands", max_pixels)
        check_bytes(max(self.sizes, default=0), "a part of the TIFF", max_pixels)
        check_bytes(math.prod(self.chunk) * each, f"a TIFF with tiles of {tile} pixels", max_pixels)

    @property
    def plain(self) -> bool:
        """Whether Pillow reads it, and all of it."""
        if self.bits > 8 or self.format not in (1, 4):
            return False
        tagged = self.extra[:1] == (2,)
        return (
            self.bands == 1
            or (self.bands == 3 and self.colours > 1)
            or (self.bands == 2 and tagged)
            or (self.bands == 4 and (tagged or self.colours == 5))
            or self.packed in _JPEG
        )

    @property
    def kind(self) -> str:
        """The type of a value, in numpy's words."""
        word = {2: "int", 3: "float"}.get(self.format, "uint")
        size = next((size for size in (8, 16, 32, 64) if self.bits <= size), 64)
        if self.format not in (1, 2, 3, 4) or self.bits > 64 or (word == "float" and (size != self.bits or size == 8)):
            raise Refused(f"a TIFF of values of {self.bits} bits and format {self.format}, which is not read")
        return f"{word}{size}"

    @property
    def named(self) -> int | None:
        """How many bands are said to be colours."""
        if self.bands == 3 or (self.colours == 2 and self.bands > 3):
            return 3
        return 1 if self.bands == 1 or (self.bands == 2 and self.opacity) else None

    @property
    def opacity(self) -> Literal["", "straight", "multiplied"]:
        """What the first band behind the colours is said to be."""
        behind = self.bands - (3 if self.colours == 2 else 1)
        if self.bands == 3 or behind < 1 or not self.extra or len(self.extra) != behind:
            return ""
        return {1: "multiplied", 2: "straight"}.get(self.extra[0], "")  # type: ignore[return-value]

    def read(self) -> NDArray[Any]:
        """All values, [H, W, C]."""
        out = np.empty((self.height, self.width, self.bands), self.kind)
        high, wide = self.chunk
        across, down = -(-self.width // wide), -(-self.height // high)
        planes = self.bands if self.separate else 1
        if len(self.offsets) < across * down * planes or len(self.sizes) < across * down * planes:
            raise Refused("truncated: the header of the TIFF lists too few parts")
        for number, lines in enumerate(self._chunks(across * down * planes, across * down)):
            plane, place = divmod(number, across * down)
            top, left = place // across * high, place % across * wide
            bands = slice(plane, plane + 1) if self.separate else slice(None)
            hole = out[top : top + high, left : left + wide, bands]
            step = max(1, _AT_ONCE // lines.shape[1])
            for start in range(0, len(hole), step):
                some = self._values(lines[start : min(start + step, len(hole))], hole.shape[2])
                hole[start : start + step] = some[:, : hole.shape[1]]
        return out

    def _chunks(self, count: int, each_plane: int) -> Iterator[NDArray[np.uint8]]:
        """Every chunk in order, as bytes [rows, line]."""
        bands = 1 if self.separate else self.bands
        line = -(-self.chunk[1] * bands * self.bits // 8)  # bytes
        lines = [
            self.chunk[0] if self.tiled else min(self.chunk[0], self.height - number % each_plane * self.chunk[0])
            for number in range(count)
        ]
        step = max(1, _TOGETHER // (line * self.chunk[0]))
        for first in range(0, count, step):
            some = range(first, min(first + step, count))
            parts = [self._bytes(number) for number in some]
            yield from _unpacked(parts, [lines[number] for number in some], line, self.packed)

    def _bytes(self, number: int) -> bytes:
        start, size = self.offsets[number], self.sizes[number]
        there = self.file.seek(0, io.SEEK_END) - start
        if there < size:
            raise Refused(f"truncated: {max(there, 0)} of {size} bytes of part {number} are there")
        self.file.seek(start)
        return self.file.read(size)

    def _values(self, rows: NDArray[np.uint8], bands: int) -> NDArray[Any]:
        """Bytes [rows, line] become values [rows, columns, bands]."""
        columns, kind = self.chunk[1], np.dtype(self.kind)
        if self.predicted == 3:
            return _from_float_differences(rows, columns, bands, kind)
        if self.bits % 8:
            bits = np.unpackbits(rows, axis=1)[:, : columns * bands * self.bits]
            weights = 1 << np.arange(self.bits - 1, -1, -1, dtype=np.int64)
            values = (bits.reshape(len(rows), columns, bands, self.bits) @ weights).astype(kind)
        elif self.bits != 8 * kind.itemsize:
            raise Refused(f"a TIFF of values of {self.bits} bits, which is not read")
        else:
            values = (
                rows.view(kind.newbyteorder(self.order)).astype(kind, copy=False).reshape(len(rows), columns, bands)
            )
        if self.predicted == 2:
            whole = values.view(f"u{kind.itemsize}")
            values = np.cumsum(whole, axis=1, dtype=whole.dtype).view(kind)
        return values


def _from_float_differences(rows: NDArray[np.uint8], columns: int, bands: int, kind: np.dtype[Any]) -> NDArray[Any]:
    """Undo the predictor of floats: differences of bytes, all the highest bytes of a row first."""
    whole = np.cumsum(rows.reshape(len(rows), -1, bands), axis=1, dtype=np.uint8)
    planes = whole.reshape(len(rows), kind.itemsize, columns * bands).transpose(0, 2, 1)
    return np.ascontiguousarray(planes).view(kind.newbyteorder(">")).astype(kind).reshape(len(rows), columns, bands)


def _unpacked(parts: list[bytes], lines: list[int], line: int, packed: int) -> Iterator[NDArray[np.uint8]]:
    """Each part as bytes [lines, line]."""
    if packed in _LIBTIFF:
        whole = _by_libtiff(parts, lines, line, packed)
        for rows in np.split(whole, np.cumsum(lines)[:-1]):
            yield np.ascontiguousarray(rows)
        return
    for part, count in zip(parts, lines, strict=True):
        data = zlib.decompressobj().decompress(part, count * line) if packed in _DEFLATE else part
        if len(data) < count * line:
            raise Refused(f"truncated: {len(data)} of {count * line} bytes of a part are there")
        yield np.frombuffer(data, np.uint8, count * line).reshape(count, line)


def _by_libtiff(parts: list[bytes], lines: list[int], line: int, packed: int) -> NDArray[np.uint8]:
    """The parts as strips of a grey TIFF of 8 bits, which Pillow opens; all but the last have equally many lines."""
    starts = np.cumsum([8, *map(len, parts)]).tolist()
    tags: list[tuple[int, list[int]]] = [(_WIDTH, [line]), (_HEIGHT, [sum(lines)]), (_BITS, [8]), (_PACKED, [packed])]
    tags += [(_COLOURS, [1]), (_OFFSETS, starts[:-1]), (_BANDS, [1]), (_ROWS, [max(lines)])]
    tags += [(_SIZES, [len(part) for part in parts])]
    entries, tail = b"", b""
    behind = starts[-1] + 2 + 12 * len(tags) + 4
    for tag, numbers in tags:
        data = struct.pack(f"<{len(numbers)}I", *numbers)
        place = data if len(numbers) == 1 else struct.pack("<I", behind + len(tail))
        tail += data if len(numbers) > 1 else b""
        entries += struct.pack("<HHI", tag, 4, len(numbers)) + place
    head = b"II*\0" + struct.pack("<I", starts[-1])
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    with Image.open(io.BytesIO(b"".join([head, *parts, directory, tail])), formats=("TIFF",)) as image:
        return np.asarray(image)


def has_pages(file: BinaryIO) -> bool:
    """Tell whether a TIFF file holds further images, smaller copies and masks of the first not counted."""
    order, start, big = _begin(file)
    for number in range(_PAGES):
        tags, start = _directory(file, order, start, big)
        if number and not int((tags.get(_PURPOSE) or (0,))[0]) & 0b101:
            return True
        if not start:
            return False
    return False


def _tags(file: BinaryIO) -> tuple[Order, dict[int, tuple[Any, ...]]]:
    """The byte order, and the entries of the first directory that are asked for here."""
    order, start, big = _begin(file)
    return order, _directory(file, order, start, big)[0]


def _begin(file: BinaryIO) -> tuple[Order, int, bool]:
    """The byte order, where the first directory is, and whether numbers have 64 bits."""
    file.seek(0)
    head = file.read(16)
    order: Order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    (start,) = struct.unpack(f"{order}{'Q' if big else 'I'}", head[8:16] if big else head[4:8])
    return order, start, big


def _directory(file: BinaryIO, order: Order, start: int, big: bool) -> tuple[dict[int, tuple[Any, ...]], int]:
    """The entries of a directory that are asked for here, and where the next one is, 0 for none."""
    file.seek(start)
    (count,) = struct.unpack(f"{order}{'Q' if big else 'H'}", file.read(8 if big else 2))
    width, room = (20, 8) if big else (12, 4)
    if count > 4096:
        raise Refused(f"a TIFF with {count} entries in its header")
    table, tags = file.read(count * width), dict[int, tuple[Any, ...]]()
    behind = file.read(room)
    for at in range(0, count * width, width):
        tag, kind, number = struct.unpack_from(f"{order}HH{'Q' if big else 'I'}", table, at)
        if tag not in _WANTED or kind not in _TYPES or not 0 < number <= _MOST:
            continue
        size = struct.calcsize(f"{order}{_TYPES[kind]}") * number
        data = table[at + width - room : at + width]
        if size > room:
            file.seek(struct.unpack(f"{order}{'Q' if big else 'I'}", data)[0])
            data = file.read(size)
        tags[tag] = struct.unpack(f"{order}{number}{_TYPES[kind]}", data[:size])
    return tags, int.from_bytes(behind, "little" if order == "<" else "big") if len(behind) == room else 0


_WANTED = {_WIDTH, _HEIGHT, _BITS, _PACKED, _COLOURS, _FILL, _OFFSETS, _TURNED, _BANDS, _ROWS, _SIZES, _PLANES}
_WANTED |= {_PURPOSE, _PREDICTED, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_SIZES, _EXTRA, _FORMAT, _MISSING}


def _number(text: tuple[Any, ...] | None) -> float | None:
    """GDAL's text of the value that stands for none."""
    try:
        return float(text[0].rstrip(b" \0")) if text else None
    except ValueError:
        return None
