"""What an image may cost: pixels, sides and bytes are checked by the header, before anything is decoded."""

from __future__ import annotations

from typing import Any

from PIL import Image

MAX_PIXELS = 100e6  # an image of 100 megapixels takes 300 MB as RGB, which is as much as any may take
MAX_SIDE = 100_000  # pixels
MAX_FILE = 2e9  # bytes of a file that has to be in memory as a whole, as those in archives

_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2, "RGB": 3, "YCbCr": 3}  # others: 4
_WHOLE = ("WEBP", "AVIF", "JPEG2000")  # their libraries hold a frame of their own


class Refused(Exception):
    """An image is not going to be decoded; the message is the reason, one line."""


def check_size(width: int, height: int, max_pixels: float = MAX_PIXELS) -> None:
    """Raise Refused for too many pixels, in all or along a side."""
    if width * height > max_pixels:
        raise Refused(f"{width} x {height} pixels, more than the {max_pixels:,.0f} allowed")
    if max(width, height) > MAX_SIDE:
        raise Refused(f"{width} x {height} pixels, more than the {MAX_SIDE:,} allowed along a side")


def check_bytes(count: float, what: str, max_pixels: float = MAX_PIXELS) -> None:
    """Raise Refused where decoding takes more bytes than `max_pixels` of RGB have."""
    if count > 3 * max_pixels:
        raise Refused(f"{what} takes {count / 1e6:,.0f} MB, more than the {3 * max_pixels / 1e6:,.0f} MB allowed")


def sixteen(image: Any) -> str:
    """Return how Pillow is going to unpack a PNG of 16 bits a channel, empty for all else."""
    tiles = getattr(image, "tile", None) if image.format == "PNG" else None
    raw = str(tiles[0][-1]) if tiles else ""
    return raw if raw.endswith(";16B") else ""


def check_image(image: Image.Image, max_pixels: float = MAX_PIXELS) -> None:
    """Raise Refused for an image that Pillow has opened and not yet loaded, if it is too large."""
    check_size(image.width, image.height, max_pixels)
    each = _BYTES.get(image.mode, 4)
    if image.format == "GIF":
        each = 4  # Pillow turns frames to RGB
    elif image.format in _WHOLE:
        each = 6
    elif image.info.get("progressive"):
        each = max(each, 2 * len(image.getbands()))  # all coefficients are kept until the last scan
    elif image.format == "PNG" and image.mode in ("RGB", "RGBA") and sixteen(image):
        each = 3 * len(image.getbands())  # they are unpacked twice
    check_bytes(image.width * image.height * each, f"{image.width} x {image.height} pixels of {image.mode}", max_pixels)
