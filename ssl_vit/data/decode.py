"""A file becomes RGB, safely: Pillow only, any mode, orientation applied, pixels capped before decoding."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ssl_vit.data.remote import is_url, read_part

MAX_PIXELS = 100e6  # an image of 100 megapixels takes 300 MB as RGB

LARGE = 1e6  # pixels; below, decoding at a part of the size saves next to nothing

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # the only parsers that untrusted bytes reach
_FROM_16_BITS: NDArray[np.uint8] = np.rint(np.arange(65536) / 257).astype(np.uint8)
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


class Member(NamedTuple):
    """A member is a file inside an archive that is not compressed."""

    archive: str  # a path or a URL
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}"


class Rows(Protocol):
    """Rows are images that a library keeps, one a row."""

    def read(self, index: int) -> bytes | Image.Image:
        """Return a row's image, as a file or decoded; whatever this raises makes it a bad image."""


class Row(NamedTuple):
    """A row is an image that a library keeps."""

    rows: Rows
    number: int
    name: str  # what its file would be called, with the class for a folder

    def __str__(self) -> str:
        return self.name


Place = str | Member | Row  # where an image is: a path, a part of an archive, a row of a dataset


class BadImage(Exception):
    """A file is no readable image; the message is one line, the `reason` is the same without the path."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def decode(place: Place, max_pixels: float = MAX_PIXELS, want: int | None = None) -> NDArray[np.uint8]:
    """Decode a file to RGB, uint8 [H, W, 3].

    The first frame of an animation; transparency on white; EXIF orientation applied; 16 bits scaled by 1/257 (see
    ``to_rgb`` for other depths). A JPEG above a megapixel whose short side is at least twice `want` pixels may come at
    a half, a quarter or an eighth of its size, never with a short side below `want`. Raises BadImage.
    """
    with _image(place) as image:
        return _upright(image, str(place), max_pixels, want)


def image_size(place: Place) -> tuple[int, int]:
    """Read height and width in pixels from the header, orientation not applied. Raises BadImage."""
    with _image(place) as image:
        return image.height, image.width


def image_header(place: Place) -> tuple[int, int, str]:
    """Read height and width in pixels, orientation not applied, and Pillow's mode from the header. Raises BadImage."""
    with _image(place) as image:
        return image.height, image.width, image.mode


def image_type(data: bytes) -> str:
    """Return the extension that a file of these bytes should have. Raises BadImage."""
    with _blaming("an image"), _parsed(io.BytesIO(data)) as image:
        return {"JPEG": "jpg", "MPO": "jpg"}.get(str(image.format), str(image.format).lower())


def read_bytes(place: Place) -> bytes:
    """Return the file as it is; a PNG of a row that a library has decoded. Raises BadImage."""
    with _blaming(str(place)):
        found = _opened(place)
        if not isinstance(found, Image.Image):
            with found as file:
                return file.read()
    png = io.BytesIO()
    Image.fromarray(decode(place)).save(png, "PNG")
    return png.getvalue()


@contextmanager
def _image(place: Place) -> Iterator[Image.Image]:
    with _blaming(str(place)):
        found = _opened(place)
        if isinstance(found, Image.Image):
            yield found
        else:
            with found as file, _parsed(file) as image:
                yield image


def _parsed(file: BinaryIO) -> Image.Image:
    return Image.open(file, formats=_FORMATS)


def _opened(place: Place) -> BinaryIO | Image.Image:
    if isinstance(place, str):
        return _open_regular(place)
    if isinstance(place, Row):
        found = place.rows.read(place.number)
        return io.BytesIO(found) if isinstance(found, bytes) else found
    try:
        data = _part(place)
    except OSError as error:
        raise BadImage(str(place), str(error)) from error
    if len(data) < place.size:
        raise BadImage(str(place), f"truncated: {len(data)} of {place.size} bytes are in the archive")
    return io.BytesIO(data)


def _part(place: Member) -> bytes:
    if is_url(place.archive):
        return read_part(place.archive, place.offset, place.offset + place.size)
    with _open_regular(place.archive) as archive:
        archive.seek(place.offset)
        return archive.read(place.size)


def _open_regular(path: str) -> BinaryIO:
    """Open without ever waiting: a FIFO that nobody writes to must not stop a run."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BadImage(path, error.strerror or "cannot be opened") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadImage(path, "not a regular file")
    return os.fdopen(descriptor, "rb")


def _upright(image: Image.Image, path: str, max_pixels: float, want: int | None) -> NDArray[np.uint8]:
    if image.width * image.height > max_pixels:
        raise BadImage(path, f"{image.width} x {image.height} pixels, more than the {max_pixels:,.0f} allowed")
    large = image.width * image.height > LARGE
    if want is not None and large and image.format in ("JPEG", "MPO"):  # MPO: several JPEGs in one file
        image.draft(None, (want, want))
    pixels = to_rgb(image)
    # Asked for after loading: TIFF is turned by then, and PNG may carry its EXIF behind the pixels.
    turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    return pixels if turn is None else np.array(Image.fromarray(pixels).transpose(turn))


@contextmanager
def _blaming(path: str) -> Iterator[None]:
    """Whatever Pillow raises becomes BadImage: on hostile bytes its parsers raise nearly anything."""
    try:
        yield
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadImage(path, "empty, or no JPEG, PNG, WebP, BMP, TIFF or GIF image") from error
    except Exception as error:
        text = " ".join(str(error).split())
        raise BadImage(path, f"{type(error).__name__}: {text}" if text else type(error).__name__) from error


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Convert an image of any Pillow mode to RGB, uint8 [H, W, 3].

    Transparency is composited on white. 16-bit grey is divided by 257; so are 32-bit integers that fit in 16 bits,
    and others are stretched from their minimum and maximum to 0 … 255. Floats are taken as 0 … 1 if they all lie
    there, else as 0 … 255 if they all lie there, else stretched likewise. Raises ValueError for floats not finite.
    """
    if image.mode.startswith(("I", "F")):
        gray = _to_8_bits(np.asarray(image))
        return np.repeat(gray[..., None], 3, axis=2)
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        white = Image.new("RGBA", colour.size, "white")
        return np.array(Image.alpha_composite(white, colour).convert("RGB"))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _to_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
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
