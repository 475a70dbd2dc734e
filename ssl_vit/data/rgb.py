"""What Pillow has opened becomes RGB of 8 bits; what it would cut to 8 bits is recognised and read whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssl_vit.data.caps import sixteen
from ssl_vit.data.values import Bands, Deep, picked

_STRIP = 2**22  # pixels that are converted together, which bounds what that takes
_FROM_16_BITS: NDArray[np.uint8] = np.rint(np.arange(65536) / 257).astype(np.uint8)
KINDS = {"I": "int32", "F": "float32"} | {f"I;16{end}": "uint16" for end in ("", "B", "L", "N")}  # of a mode's values
_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG_COLOURS = {"RGB;16B": 3, "RGBA;16B": 4, "LA;16B": 2}  # how Pillow unpacks 16 bits to 8, and how many bands that is


def turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn an image upright, by EXIF's number."""
    turn = _UPRIGHT.get(orientation)
    return pixels if turn is None else np.array(Image.fromarray(pixels).transpose(turn))


def orientation(image: Image.Image) -> int:
    """Read EXIF's number; after loading, as TIFF is turned by then, and PNG may carry its EXIF behind the pixels."""
    return int(image.getexif().get(_ORIENTATION, 1))


def deep(image: Image.Image, reopened: Callable[[], Image.Image] | None = None) -> Deep | None:
    """Return what has more than 8 bits, else None; reopened: gives the file once more, for colours of 16 bits."""
    kind = KINDS.get(image.mode)
    word = image.format or "PIL image"
    if kind is not None:
        return Deep(
            lambda: np.asarray(image)[..., None],
            word,
            image.width,
            image.height,
            kind,
            1,
            1,
            orientation=lambda: orientation(image),
        )
    unpacked = sixteen(image)
    if unpacked not in _PNG_COLOURS or reopened is None:
        return None
    bands = _PNG_COLOURS[unpacked]
    return Deep(
        lambda: _png_colours(image, reopened, unpacked),
        word,
        image.width,
        image.height,
        "uint16",
        bands,
        3 if bands > 2 else 1,
        "" if bands == 3 else "straight",
        orientation=lambda: orientation(image),
    )


def _png_colours(image: Image.Image, reopened: Callable[[], Image.Image], unpacked: str) -> NDArray[np.uint16]:
    """Colours of 16 bits, which Pillow unpacks as the high bytes, or, taken for little-endian, as the low ones."""
    if unpacked == "LA;16B":  # as four bands of 8 bits: grey's two bytes, then opacity's
        return _unpacked_as(image, "RGBA").view(">u2").astype(np.uint16)
    with reopened() as again:
        low = _unpacked_as(again, unpacked.replace("16B", "16L"))
    both = _unpacked_as(image, unpacked).astype(np.uint16)
    both <<= 8
    both |= low
    return both


def _unpacked_as(image: Any, mode: str) -> NDArray[np.uint8]:
    first = image.tile[0]
    image.tile = [type(first)(*first[:-1], mode)]
    return np.asarray(image)


def to_8_bits(image: Image.Image, bands: Bands = None) -> NDArray[np.uint8]:
    """Convert an image of 8 bits or less to RGB, uint8 [H, W, 3]: transparency on white, or these bands of it."""
    image.load()
    if image.width * image.height <= _STRIP:
        return _converted(image, bands)
    out = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        out[top:bottom] = _converted(image.crop((0, top, image.width, bottom)), bands)
    return out


def _converted(image: Image.Image, bands: Bands) -> NDArray[np.uint8]:
    if bands is not None:
        plain = image if image.mode in ("L", "LA", "RGB", "RGBA", "RGBa", "RGBX") else image.convert("RGB")
        found = np.asarray(plain)
        return picked(found.reshape(*found.shape[:2], -1), bands)
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        white = Image.new("RGBA", colour.size, "white")
        return np.array(Image.alpha_composite(white, colour).convert("RGB"))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def by_type(image: Image.Image) -> NDArray[np.uint8]:
    """Convert an image of any Pillow mode to RGB as runs did before they had a range, uint8 [H, W, 3].

    16-bit grey is divided by 257; so are 32-bit integers that fit in 16 bits, and others are stretched from their
    minimum and maximum to 0 … 255. Floats are taken as 0 … 1 if they all lie there, else as 0 … 255 if they all lie
    there, else stretched likewise. Raises ValueError for floats not finite.
    """
    if image.mode not in KINDS:
        return to_8_bits(image)
    return np.repeat(_stretched(np.asarray(image))[..., None], 3, axis=2)


def _stretched(values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.dtype.kind != "f" and values.min() >= 0 and values.max() < len(_FROM_16_BITS):
        return np.take(_FROM_16_BITS, values)
    if not np.isfinite(values).all():
        raise ValueError("pixels that are not finite")
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f" and low >= 0 and high <= 255:
        scaled = values * (255.0 if high <= 1 else 1.0)
    else:
        scaled = (values.astype(np.float64) - low) * (255 / ((high - low) or 1.0))
    return np.rint(scaled).astype(np.uint8)
