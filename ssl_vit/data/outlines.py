"""Outlines of objects: polygons, or the run lengths of a mask as COCO has them; drawn, and turned with their image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_T = TypeVar("_T", bound=np.generic)
Polygons = tuple[NDArray[np.float32], ...]  # each [n, 2] (x, y), pixels


class Runs(NamedTuple):
    """Runs are a mask: lengths of nothing and of the object in turn, down the columns, beginning with nothing."""

    lengths: NDArray[np.int64]
    size: tuple[int, int]  # (height, width), pixels

    def mask(self) -> NDArray[np.bool_]:
        """The mask is bool [height, width].

        >>> Runs(np.array([1, 3, 2]), (2, 3)).mask().astype(int)
        array([[0, 1, 0],
               [1, 1, 0]])
        """
        values = np.arange(len(self.lengths)) % 2 == 1
        return np.repeat(values, self.lengths).reshape(self.size[::-1]).T


Outline = Polygons | Runs

_QUARTER_TURNS = {  # by EXIF orientation: which of x and y are counted from the other side before they are swapped
    5: (False, False),
    6: (False, True),
    7: (True, True),
    8: (True, False),
}


def box_of(outline: Polygons) -> list[float]:
    """The corners left, top, right, bottom around polygons."""
    points = np.concatenate(outline)
    return [*points.min(0).tolist(), *points.max(0).tolist()]


def polygons(rings: Sequence[Any], size: tuple[int, int]) -> Polygons | None:
    """Read COCO's rings, lists x1, y1, x2, y2 …; None where one of them can't be drawn.

    What has fewer than three corners, numbers that are not finite, or lies far outside of the image of `size`
    (height, width) can't be.
    """
    height, width = size
    found = []
    for ring in rings:
        if not isinstance(ring, list) or len(ring) < 6 or len(ring) % 2 or not all(map(_is_number, ring)):
            return None
        try:
            points = np.array(ring, np.float64).reshape(-1, 2)
        except OverflowError:
            return None
        far = np.abs(points - np.array([width, height]) / 2) > 2 * np.array([width, height])
        if not np.isfinite(points).all() or far.any():
            return None
        found.append(points.astype(np.float32))
    return tuple(found) or None


def runs(entry: Any, size: tuple[int, int]) -> Runs | None:
    """Read COCO's {"counts": …, "size": [height, width]}, counts a list or compressed text; None where it is broken.

    A mask of another size than the image's is.
    """
    if not isinstance(entry, dict) or entry.get("size") != list(size):
        return None
    counts = entry.get("counts")
    try:
        if isinstance(counts, str):
            lengths = uncompressed(counts.encode("ascii"))
        elif isinstance(counts, list) and all(isinstance(count, int) for count in counts):
            lengths = np.array(counts, np.int64)
        else:
            return None
    except (ValueError, OverflowError):
        return None
    pixels = size[0] * size[1]
    if (lengths < 0).any() or (lengths > pixels).any() or lengths.sum() != pixels or not lengths[1::2].any():
        return None
    return Runs(lengths, size)


def uncompressed(text: bytes) -> NDArray[np.int64]:
    """Read the lengths of pycocotools' compressed text; ValueError where it is none.

    Each character holds five bits, lowest first, one that says that more follow, and 48 is added; from the fourth
    number on, each is the difference from the last but one.

    >>> uncompressed(b"132").tolist()
    [1, 3, 2]
    """
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((codes & 0x20) == 0)
    if not len(codes) or (codes < 0).any() or (codes > 0x3F).any() or not len(last) or last[-1] != len(codes) - 1:
        raise ValueError("not the text of run lengths")
    first = np.concatenate([[0], last[:-1] + 1])
    places = np.arange(len(codes)) - np.repeat(first, last - first + 1)
    if places.max() > 10:
        raise ValueError("numbers of more than 55 bits")
    numbers = np.add.reduceat((codes & 0x1F) << (5 * places), first)
    bits = 5 * (last - first + 1)
    numbers = np.where(codes[last] & 0x10, numbers - (np.int64(1) << bits), numbers)
    for start in (1, 2):
        numbers[start::2] = np.cumsum(numbers[start::2])
    return numbers


def run_lengths(mask: NDArray[np.bool_]) -> Runs:
    """Write a mask, bool [height, width], as runs."""
    flat = np.concatenate([[False], mask.T.ravel()])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    lengths = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return Runs(lengths.astype(np.int64), (mask.shape[0], mask.shape[1]))


def turned(points: NDArray[Any], orientation: int, size: tuple[int, int]) -> NDArray[Any]:
    """Points [n, 2] (x, y) of an image of `size` (height, width) as stored go where a quarter turn by EXIF puts them.

    >>> turned(np.array([[10.0, 20.0]]), 6, (60, 80))
    array([[40., 10.]])
    """
    height, width = size
    x, y = points[:, 0], points[:, 1]
    other_x, other_y = _QUARTER_TURNS[orientation]
    x, y = (width - x if other_x else x), (height - y if other_y else y)
    return np.stack([y, x], 1)


def turned_outline(outline: Outline, orientation: int, size: tuple[int, int]) -> Outline:
    """Turn an outline as ``turned`` does points."""
    if not isinstance(outline, Runs):
        return tuple(turned(ring, orientation, size) for ring in outline)
    return run_lengths(turned_mask(outline.mask(), orientation))


def turned_mask(mask: NDArray[_T], orientation: int) -> NDArray[_T]:
    """Turn pixels [height, width] as ``turned`` does points."""
    other_x, other_y = _QUARTER_TURNS[orientation]
    return mask[:: -1 if other_y else 1, :: -1 if other_x else 1].T


def drawn(
    outline: Outline | None,
    canvas: int,
    size: tuple[int, int],
    scale: tuple[float, float],
    corner: tuple[int, int],
    flipped: bool,
) -> NDArray[np.bool_]:
    """Draw an outline, filled, bool [canvas, canvas]; nothing for None.

    The image of `size` (height, width) is mirrored if `flipped`, enlarged by `scale` (x, y), and cut off above and
    left of `corner` (x, y).
    """
    picture = Image.new("1", (canvas, canvas))
    if isinstance(outline, Runs):
        mask = Image.fromarray(outline.mask()[:, :: -1 if flipped else 1])
        large = (round(size[1] * scale[0]), round(size[0] * scale[1]))
        picture.paste(
            mask.convert("L").resize(large, Image.Resampling.BILINEAR).point(_HALF, "1"), (-corner[0], -corner[1])
        )
        return np.array(picture)
    for ring in outline or ():
        x = size[1] - ring[:, 0] if flipped else ring[:, 0]
        x, y = x * scale[0] - corner[0], ring[:, 1] * scale[1] - corner[1]
        x, y = x - 0.5, y - 0.5  # Pillow's points are centres of pixels
        ImageDraw.Draw(picture).polygon(np.stack([x, y], 1).flatten().tolist(), fill=1)
    return np.array(picture)


_HALF = [0] * 128 + [255] * 128


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
