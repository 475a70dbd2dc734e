"""TIFF files that Pillow can't write: any number of bands, of any type."""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

_FORMATS = {"u": 1, "i": 2, "f": 3}


def tiff(
    values: NDArray,
    *,
    rgb: bool = False,
    extra: tuple[int, ...] = (),
    missing: str = "",
    deflate: bool = False,
    predictor: int = 1,
    separate: bool = False,
    tile: int = 0,
    big_endian: bool = False,
    more: dict[int, int] | None = None,
) -> bytes:
    """A TIFF of [H, W, C]; extra: what bands behind the colours are (2: opacity); tile: its side, 0 for one strip."""
    order, (height, width, bands) = ">" if big_endian else "<", values.shape
    planes = [values[..., [band]] for band in range(bands)] if separate else [values]
    parts = [_packed(part, order, predictor, deflate) for plane in planes for part in _chunks(plane, tile)]
    starts = np.cumsum([8, *map(len, parts)]).tolist()
    tags = {256: [width], 257: [height], 258: [8 * values.itemsize] * bands, 259: [8 if deflate else 1]}
    tags |= {262: [2 if rgb else 1], 277: [bands], 284: [2 if separate else 1], 317: [predictor]}
    tags |= {339: [_FORMATS[values.dtype.kind]] * bands} | ({338: list(extra)} if extra else {})
    sizes = [len(part) for part in parts]
    tags |= (
        {322: [tile], 323: [tile], 324: starts[:-1], 325: sizes}
        if tile
        else {273: starts[:-1], 278: [height], 279: sizes}
    )
    tags |= {key: [number] for key, number in (more or {}).items()}
    entries, tail, text = b"", b"", missing.encode() + b"\0"
    count = len(tags) + bool(missing)
    behind = starts[-1] + 2 + 12 * count + 4
    for tag, numbers in sorted(tags.items()):
        data = struct.pack(f"{order}{len(numbers)}I", *numbers)
        place = data if len(numbers) == 1 else struct.pack(f"{order}I", behind + len(tail))
        tail += data if len(numbers) > 1 else b""
        entries += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + place
    if missing:
        place = text.ljust(4, b"\0") if len(text) <= 4 else struct.pack(f"{order}I", behind + len(tail))
        entries += struct.pack(f"{order}HHI", 42113, 2, len(text)) + place
        tail += text if len(text) > 4 else b""
    head = (b"MM\0*" if big_endian else b"II*\0") + struct.pack(f"{order}I", starts[-1])
    directory = struct.pack(f"{order}H", count) + entries + struct.pack(f"{order}I", 0)
    return b"".join([head, *parts, directory, tail])


def _chunks(values: NDArray, tile: int) -> list[NDArray]:
    if not tile:
        return [values]
    height, width, bands = values.shape
    down, across = -(-height // tile), -(-width // tile)
    padded = np.zeros((down * tile, across * tile, bands), values.dtype)
    padded[:height, :width] = values
    return [padded[i * tile : (i + 1) * tile, j * tile : (j + 1) * tile] for i in range(down) for j in range(across)]


def _packed(values: NDArray, order: str, predictor: int, deflate: bool) -> bytes:
    """Differences by TIFF 6.0, section 14, and by Adobe's technical note 3 for floats."""
    if predictor == 3:
        rows, columns, bands = values.shape
        whole = np.ascontiguousarray(values.astype(values.dtype.newbyteorder(">"))).view(np.uint8)
        planes = whole.reshape(rows, columns * bands, values.itemsize).transpose(0, 2, 1).reshape(rows, -1, bands)
        data = np.diff(planes, axis=1, prepend=np.uint8(0)).tobytes()
    elif predictor == 2:
        whole = np.ascontiguousarray(values).view(f"u{values.itemsize}")
        differences = np.diff(whole, axis=1, prepend=whole.dtype.type(0))
        data = differences.astype(differences.dtype.newbyteorder(order)).tobytes()
    else:
        data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    return zlib.compress(data) if deflate else data


def png(values: NDArray) -> bytes:
    """A PNG of 16 bits [H, W, C], of which Pillow can write one band alone."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, bands = values.shape
    header = struct.pack(">2I5B", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
