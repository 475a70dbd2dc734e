"""Images that are the same to the byte on any machine, whatever libraries it has."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIDE = 48  # pixels; a row's bytes are a multiple of 4, as BMP wants them


def draw(folder: Path, images: int) -> Path:
    """A new folder of BMP files: stripes of a slope and a colour of their own, under noise.

    Integers alone, from the raw stream of numpy's PCG64, which numpy promises to keep.
    """
    folder.mkdir(parents=True)
    for number in range(images):
        (folder / f"{number:03}.bmp").write_bytes(_bmp(_picture(number)))
    return folder


def _picture(number: int) -> NDArray[np.uint8]:
    stream = np.random.PCG64(number)
    noise = (stream.random_raw(SIDE * SIDE * 3) >> 58).reshape(SIDE, SIDE, 3)  # 0 to 63
    colour = stream.random_raw(3) >> 57  # 0 to 127
    y, x = np.mgrid[:SIDE, :SIDE]
    stripe = (x * (1 + number % 3) + y * (number % 5) + 7 * number) % 24 < 12
    picture: NDArray[np.uint8] = (64 + noise + colour * stripe[..., None]).astype(np.uint8)
    return picture


def _bmp(pixels: NDArray[np.uint8]) -> bytes:
    """Of [SIDE, SIDE, 3]: uncompressed, 24 bits a pixel."""
    body = pixels.tobytes()
    header = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 54 + len(body), 0, 54, 40, SIDE, SIDE, 1, 24, 0, 0, 0, 0, 0, 0)
    return header + body
