"""How the values of a pixel become 8 bits: one range for a whole set, never one for each image or container."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssl_vit.data.caps import Refused

Range = tuple[float, float] | Literal["each"] | None
Bands = tuple[int, ...] | None

_AT_ONCE = 2**20  # values that are scaled together, which bounds what that takes


class Pixels(NamedTuple):
    """The values of a set's images are read so."""

    range: Range = None  # these become 0 and 255; None: of 8 bits alone; "each": by each image's type, as once it was
    bands: Bands = None  # red, green, blue, or one that is grey; None: an image's own colours, its opacity on white

    @classmethod
    def of(cls, said: Mapping[str, Any] | None) -> Pixels:
        """The values are read as ``said`` keeps it in JSON; None, of before it was kept: by each image's type."""
        if said is None:
            return EACH
        low_high, bands = said["range"], said["bands"]
        return cls(
            (float(low_high[0]), float(low_high[1])) if isinstance(low_high, list | tuple) else low_high,
            tuple(bands) if bands is not None else None,
        )


ORDINARY, EACH = Pixels(), Pixels("each")


@dataclass(frozen=True)
class Deep:
    """The image has values of more than 8 bits, or bands that are not its colours; `read` gives them, [H, W, C]."""

    read: Callable[[], NDArray[Any]]
    format: str
    width: int
    height: int
    kind: str  # of a value, in numpy's words
    bands: int
    colours: int | None  # how many bands, from the first, are grey (1) or red, green, blue (3); None: nobody says
    opacity: Literal["", "straight", "multiplied"] = ""  # whether the band behind the colours is said to be that
    missing: float | None = None  # the value that stands for none
    inverted: bool = False  # 0 is white
    orientation: Callable[[], int] = lambda: 1  # EXIF's, after reading
    pages: Callable[[], bool] = lambda: False  # whether there are further ones in the file

    def __str__(self) -> str:
        return f"a {self.format} of {self.bands} x {self.kind} bands" if self.bands > 1 else f"{self.kind} values"


def to_rgb(deep: Deep, pixels: Pixels) -> NDArray[np.uint8]:
    """Return the image as RGB, uint8 [H, W, 3]: clipped to the range; what is missing or not finite is its low end.

    Raises Refused where the range or the bands are not known.
    """
    chosen, whole = _chosen(deep, pixels.bands), deep.kind == "uint8"
    if not whole and not isinstance(pixels.range, tuple):
        raise Refused(f"{deep}, where no image looked at has more than 8 bits: add --set data.range=[LOW,HIGH]")
    values = deep.read()
    low, high = (0.0, 255.0) if whole or not isinstance(pixels.range, tuple) else pixels.range
    out = np.empty((*values.shape[:2], 3), np.uint8)
    rows = max(1, _AT_ONCE // max(1, values.shape[1] * values.shape[2]))
    seen = False
    for start in range(0, len(values), rows):
        part = values[start : start + rows]
        there = present(part[..., chosen], deep.missing)
        seen = seen or bool(there.any())
        colours = _scaled(part[..., chosen], there, low, high)
        if deep.inverted:
            colours = 255 - colours
        if pixels.bands is None and deep.opacity and deep.colours is not None:
            colours = _on_white(colours, part[..., deep.colours], deep)
        out[start : start + rows] = colours
    if not seen:
        raise Refused("every value is missing or not finite")
    return out


def _chosen(deep: Deep, bands: Bands) -> list[int]:
    chosen = bands if bands is not None and deep.bands > 1 else None
    if chosen is None and deep.colours is None:
        raise Refused(
            f"{deep}: say which are red, green and blue, counted from 0, with --set data.bands=[0,1,2], or [0] for one "
            "as grey"
        )
    if chosen is None:
        chosen = tuple(range(deep.colours or 1))
    if max(chosen) >= deep.bands:
        raise Refused(f"{deep}, and data.bands asks for number {max(chosen)}, counted from 0")
    return list(chosen)


def present(values: NDArray[Any], missing: float | None = None) -> NDArray[np.bool_]:
    """Tell for each value whether it is one: finite, and not the one that stands for none."""
    if values.dtype.kind == "f":
        there = np.isfinite(values)
        return there if missing is None else np.asarray(there & (values != values.dtype.type(missing)))
    limits = np.iinfo(values.dtype)
    if missing is None or missing % 1 or not limits.min <= missing <= limits.max:
        return np.ones(values.shape, np.bool_)
    return np.asarray(values != int(missing))


def _scaled(values: NDArray[Any], there: NDArray[np.bool_], low: float, high: float) -> NDArray[np.uint8]:
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
        table = _table(values.dtype.str, low, high)
        found = np.take(table, values.astype(np.int32) - np.iinfo(values.dtype).min)
    else:
        found = _levels(np.where(there, values, low), low, high)
    return found if there.all() else np.where(there, found, np.uint8(0))


@lru_cache(maxsize=4)
def _table(kind: str, low: float, high: float) -> NDArray[np.uint8]:
    limits = np.iinfo(np.dtype(kind))
    return _levels(np.arange(limits.min, int(limits.max) + 1), low, high)


def _levels(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def opaque(kind: str) -> float:
    """Return the opacity that lets nothing through, of bands of a type."""
    return 1.0 if np.dtype(kind).kind == "f" else float(np.iinfo(np.dtype(kind)).max)


def _on_white(colours: NDArray[np.uint8], opacity: NDArray[Any], deep: Deep) -> NDArray[np.uint8]:
    share = np.clip(np.nan_to_num(opacity.astype(np.float64)) / opaque(deep.kind), 0, 1)[..., None]
    front = colours if deep.opacity == "multiplied" else colours * share
    return np.rint(np.clip(front + 255 * (1 - share), 0, 255)).astype(np.uint8)


def picked(values: NDArray[np.uint8], bands: Sequence[int]) -> NDArray[np.uint8]:
    """Return these bands of an image of 8 bits, [H, W, 3]; one of a single band is grey whatever was asked for."""
    count = values.shape[2]
    if count == 1:
        return np.repeat(values, 3, axis=2)
    if max(bands) >= count:
        raise Refused(f"{count} bands, and data.bands asks for number {max(bands)}, counted from 0")
    return np.ascontiguousarray(np.broadcast_to(values[..., list(bands)], (*values.shape[:2], 3)))
