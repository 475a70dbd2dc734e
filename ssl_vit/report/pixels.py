"""Pixels become files that a page can hold: strips and sheets of pictures, and the text that stands for a file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssl_vit.files import write_atomically

Picture = NDArray[np.uint8]
"""[H, W, 3]."""
WIDEST = 1400  # pixels of a picture in a page


def shrunk(picture: Picture, side: int) -> Picture:
    """A square picture of so many pixels a side; small ones stay as sharp as they are."""
    how = Image.Resampling.NEAREST if picture.shape[0] * 3 <= side else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(picture).resize((side, side), how))


def cells(values: NDArray[np.uint8], side: int) -> Picture:
    """Cells [h, w, 3] as a square picture, each as large as the part of the image that it speaks of."""
    return np.asarray(Image.fromarray(values).resize((side, side), Image.Resampling.NEAREST))


def strip(pictures: Sequence[Picture], gap: int = 4) -> Picture:
    """Pictures of one size beside each other, on white."""
    high, wide = pictures[0].shape[:2]
    whole = np.full((high, len(pictures) * (wide + gap) - gap, 3), 255, np.uint8)
    for place, picture in enumerate(pictures):
        whole[:, place * (wide + gap) : place * (wide + gap) + wide] = picture
    return whole


def sheet(pictures: Sequence[Picture], columns: int) -> Picture:
    """Pictures of one size in rows, without gaps."""
    high, wide = pictures[0].shape[:2]
    whole = np.zeros((-(-len(pictures) // columns) * high, columns * wide, 3), np.uint8)
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        whole[row * high : (row + 1) * high, column * wide : (column + 1) * wide] = picture
    return whole


def write(picture: Picture, path: Path) -> None:
    """Write a picture whole or not at all, as its name's ending says."""
    options: dict[str, Any] = {"format": "JPEG", "quality": 82} if path.suffix == ".jpg" else {"format": "PNG"}
    write_atomically(path, lambda staged: Image.fromarray(picture).save(staged, **options))


def embedded(path: Path) -> str:
    """A picture file as the address of an image in a page; large ones are made smaller."""
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        kind = image.format
        if image.width > WIDEST or (kind == "PNG" and len(data) > 300_000):
            small = image.convert("RGB")
            small.thumbnail((WIDEST, 10 * WIDEST))
            file = io.BytesIO()
            small.save(file, format="JPEG", quality=85)
            kind, data = "JPEG", file.getvalue()
    media = "jpeg" if kind == "JPEG" else "png"
    return f"data:image/{media};base64,{base64.b64encode(data).decode()}"
