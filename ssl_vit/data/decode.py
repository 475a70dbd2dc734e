"""A file becomes RGB, safely: any mode, orientation applied, its pixels and bytes capped before decoding."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from ssl_vit.data.caps import MAX_FILE, MAX_PIXELS, Refused, check_image
from ssl_vit.data.remote import is_url, read_part
from ssl_vit.data.rgb import KINDS, by_type, deep, orientation, to_8_bits, turned
from ssl_vit.data.tiff import has_pages, hush, is_tiff, open_tiff
from ssl_vit.data.values import ORDINARY, Deep, Pixels, to_rgb

LARGE = 1e6  # pixels; below, decoding at a part of the size saves next to nothing

# Windows has neither of the first two, and without the last turns line ends round.
_READ = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # the only parsers that untrusted bytes reach
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257

hush()


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


Said = Literal["colours", "opacity", "unnamed"]


class Header(NamedTuple):
    """The header says this of an image, before its pixels are read."""

    width: int
    height: int
    kind: str  # the type of a value, in numpy's words
    bands: int
    said: Said  # what the bands are, the last of them in the case of opacity
    format: str
    words: str  # Pillow's mode, or how many values of which type
    pages: bool = False  # whether a TIFF has further ones, which are not read

    @property
    def plain(self) -> bool:
        """The answer says whether JPEG could hold it: colours of 8 bits."""
        beyond = self.said == "colours" and self.bands == 4 and self.words != "CMYK"  # near infrared, say
        return self.kind == "uint8" and self.said != "unnamed" and self.bands <= 4 and not beyond


Place = str | Member | Row  # where an image is: a path, a part of an archive, a row of a dataset


class BadImage(Exception):
    """A file is no readable image; the message is one line, the `reason` is the same without the path."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def decode(
    place: Place,
    pixels: Pixels = ORDINARY,
    max_pixels: float = MAX_PIXELS,
    want: int | None = None,
) -> NDArray[np.uint8]:
    """Decode a file to RGB, uint8 [H, W, 3].

    The first frame of an animation; transparency on white; EXIF orientation applied; values of more than 8 bits by
    the range that `pixels` has, or by each image's own type (see ``by_type``). A JPEG above a megapixel whose short
    side is at least twice `want` pixels may come at a half, a quarter or an eighth of its size, never with a short side
    below `want`. Raises BadImage.
    """
    with _image(place, max_pixels, typed=pixels.range == "each") as image:
        if isinstance(image, Deep):
            return turned(to_rgb(image, pixels), image.orientation())
        large = image.width * image.height > LARGE
        if want is not None and large and image.format in ("JPEG", "MPO"):  # MPO: several JPEGs in one file
            image.draft(None, (want, want))
        rgb = by_type(image) if pixels.range == "each" else to_8_bits(image, pixels.bands)
        return turned(rgb, orientation(image))


def header(place: Place) -> Header:
    """Read what a file says of its image before its pixels, orientation not applied. Raises BadImage."""
    with _image(place) as image:
        if isinstance(image, Deep):
            said: Said = "opacity" if image.opacity else "colours" if image.colours else "unnamed"
            words = f"{image.bands} x {image.kind}" if image.bands > 1 else image.kind
            return Header(image.width, image.height, image.kind, image.bands, said, image.format, words, image.pages())
        said = "opacity" if image.mode in ("LA", "RGBA", "RGBa") else "colours"
        return Header(
            image.width,
            image.height,
            "uint8",
            len(image.getbands()),
            said,
            str(image.format),
            image.mode,
            _has_pages(image),
        )


def _has_pages(image: Image.Image) -> bool:
    file: BinaryIO | None = getattr(image, "fp", None)
    return image.format == "TIFF" and file is not None and has_pages(file)


def values(place: Place) -> tuple[NDArray[Any], float | None]:
    """Read an image's own values [H, W, C], and which of them stands for none. Raises BadImage."""
    with _image(place) as image:
        if isinstance(image, Deep):
            return image.read(), image.missing
        found = np.asarray(image)
        return found.reshape(*found.shape[:2], -1), None


def image_size(place: Place) -> tuple[int, int]:
    """Read height and width in pixels from the header, of the upright image. Raises BadImage."""
    with _image(place) as image:
        height, width = image.height, image.width
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # Pillow may or may not have turned it already
            height, width = image.tag_v2[_TIFF_HEIGHT], image.tag_v2[_TIFF_WIDTH]
        return (width, height) if _quarter_turn(image) else (height, width)


def quarter_turn(place: Place) -> int:
    """Read the EXIF orientation from the header where it swaps height and width (5 to 8), else 0. Raises BadImage."""
    with _image(place) as image:
        return _quarter_turn(image)


def _quarter_turn(image: Image.Image | Deep) -> int:
    if isinstance(image, Deep):
        found = image.orientation()
    elif image.format == "PNG" and "exif" not in image.info:  # Pillow would decode it to look behind the pixels
        return 0
    else:
        found = orientation(image)
    return found if found in (5, 6, 7, 8) else 0


def image_type(data: bytes) -> str:
    """Return the extension that a file of these bytes should have. Raises BadImage."""
    with _blaming("an image"):
        if is_tiff(data[:4]):
            return "tiff"
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return {"JPEG": "jpg", "MPO": "jpg"}.get(str(image.format), str(image.format).lower())


def read_bytes(place: Place) -> bytes:
    """Return the file as it is; of a row that a library has decoded a PNG, or a TIFF of its values. Raises BadImage."""
    with _blaming(str(place)):
        found = _opened(place)
        if not isinstance(found, Image.Image):
            with found as file:
                return file.read()
        buffer = io.BytesIO()
        if found.mode in KINDS:
            found.save(buffer, "TIFF")
        else:
            Image.fromarray(decode(place)).save(buffer, "PNG")
        return buffer.getvalue()


@contextmanager
def _image(place: Place, max_pixels: float = MAX_PIXELS, *, typed: bool = False) -> Iterator[Image.Image | Deep]:
    """An image that is open; typed: as Pillow has it, whatever its values are."""
    with _blaming(str(place)):
        found = _opened(place)
        if isinstance(found, Image.Image):
            check_image(found, max_pixels)
            yield found if typed else deep(found) or found
            return
        with found as file:
            tiff = open_tiff(file, max_pixels) if is_tiff(file.read(4)) else None
            file.seek(0)
            if tiff is not None and not typed:
                yield tiff
                return
            with _parsed(file) as image:
                check_image(image, max_pixels)
                yield image if typed else deep(image, lambda: _parsed(file)) or image


def _parsed(file: BinaryIO) -> Image.Image:
    file.seek(0)
    return Image.open(file, formats=_FORMATS)


def _opened(place: Place) -> BinaryIO | Image.Image:
    if isinstance(place, str):
        return _open_regular(place)
    if isinstance(place, Row):
        found = place.rows.read(place.number)
        return io.BytesIO(found) if isinstance(found, bytes) else found
    if place.size > MAX_FILE:
        raise BadImage(str(place), f"{place.size:,} bytes, more than the {MAX_FILE:,.0f} allowed in an archive")
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
        descriptor = os.open(path, _READ)
    except OSError as error:
        raise BadImage(path, error.strerror or "cannot be opened") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadImage(path, "not a regular file")
    return os.fdopen(descriptor, "rb")


@contextmanager
def _blaming(path: str) -> Iterator[None]:
    """Whatever Pillow raises becomes BadImage: on hostile bytes its parsers raise nearly anything."""
    try:
        yield
    except BadImage:
        raise
    except Refused as error:
        raise BadImage(path, str(error)) from error
    except MemoryError as error:
        raise BadImage(path, "memory does not suffice to decode it") from error
    except UnidentifiedImageError as error:
        raise BadImage(path, "empty, or no JPEG, PNG, WebP, BMP, TIFF or GIF image") from error
    except Exception as error:
        text = " ".join(str(error).split())
        raise BadImage(path, f"{type(error).__name__}: {text}" if text else type(error).__name__) from error
