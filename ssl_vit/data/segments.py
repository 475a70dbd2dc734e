"""Images whose pixels are divided among segments, each of one class: one table, whichever format they are in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ssl_vit.data.annotations import first_of
from ssl_vit.data.decode import BadImage, quarter_turn
from ssl_vit.data.outlines import turned_mask
from ssl_vit.errors import UserError

NOWHERE = -1
"""What a pixel belongs to that doesn't count."""
_SHOWN = 5  # classes in a message


class Segments(NamedTuple):
    """The segments of one image don't overlap."""

    map: NDArray[np.int16]  # [H, W], each pixel's place in the lists below, NOWHERE for one that doesn't count
    labels: NDArray[np.int64]  # [n], the class of each segment
    crowd: NDArray[np.bool_]  # [n], whether it is a group whose objects are not told apart

    def classes(self) -> NDArray[np.int64]:
        """The class of every pixel [H, W], NOWHERE where none counts."""
        found: NDArray[np.int64] = np.append(self.labels, NOWHERE)[self.map]
        return found


@dataclass
class SegmentSource:
    """A source has images, and says how each is divided."""

    root: Path
    names: tuple[str, ...]  # of its own classes
    things: tuple[bool, ...]  # of each of `classes`, whether its segments are single objects
    panoptic: bool  # whether segments are more than the pixels of their class
    files: list[str] = field(default_factory=list)  # of the images, relative to root
    left_out: dict[str, str] = field(default_factory=dict)  # images that can't be used, and why
    notes: list[str] = field(default_factory=list)  # what else was left out or decided, a sentence each
    others: tuple[str, ...] | None = None  # the classes of another source, whose numbers are given to those of its own

    def __len__(self) -> int:
        return len(self.files)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes are what the labels that are read count."""
        return self.names if self.others is None else self.others

    def path(self, index: int) -> str:
        """Return the path of the image to open."""
        return str(self.root / self.files[index])

    def counts(self) -> Mapping[str, int]:
        """Count the segments of each class that occurs, by its name; of masks, the images that have it."""
        raise NotImplementedError

    def mask(self, index: int) -> Path:
        """Return the file that says how an image is divided."""
        raise NotImplementedError

    def beside(self) -> list[Path]:
        """List the files that say how images are divided."""
        raise NotImplementedError

    def stored(self, index: int, size: tuple[int, int]) -> Segments:
        """Read the segments of an image as its file has them, `size` (height, width) being the upright image's."""
        raise NotImplementedError

    def read(self, index: int, size: tuple[int, int]) -> Segments:
        """Read the segments of an image of `size` (height, width), upright, with the numbers that classes have here.

        Raises:
            BadImage: they can't be read, or are of an image of another size.
        """
        found = self.stored(index, size)
        found = found._replace(map=fitting(found.map, size, self.path(index)))
        if self.others is None:
            return found
        number = {name: place for place, name in enumerate(self.others)}
        places = np.array([number.get(name, NOWHERE) for name in self.names], np.int64)
        return found._replace(labels=places[found.labels])

    def numbered_as(self, train: SegmentSource) -> Self:
        """Return the same with the numbers that another source gives to classes of the same names.

        Raises:
            UserError: something of a class that the other doesn't have.
        """
        for name, count in self.counts().items():
            if name not in train.classes:
                shown = ", ".join(train.classes[:_SHOWN]) + (" …" if len(train.classes) > _SHOWN else "")
                raise UserError(
                    f"--val: {count} segments of {name!r}, which --train doesn't have ({shown}); give both one list"
                )
        return replace(self, others=train.classes, things=train.things)

    def report(self) -> str:
        """Say what was left out or decided, in a line for each kind; nothing where nothing was."""
        reasons = Counter(self.left_out.values())
        lines = [
            f"{count} images left out, {reason}: {first_of(n for n, why in self.left_out.items() if why == reason)}"
            for reason, count in sorted(reasons.items())
        ]
        return "\n".join([*lines, *self.notes])


def fitting(mask: NDArray[np.int16], size: tuple[int, int], path: str) -> NDArray[np.int16]:
    """Return a mask of an upright image of `size`, turned with it where it was drawn before EXIF turned the image.

    Raises:
        BadImage: it is of another size.
    """
    if mask.shape != size and mask.shape == size[::-1] and (turn := quarter_turn(path)):
        mask = np.ascontiguousarray(turned_mask(mask, turn))
    if mask.shape != size:
        raise BadImage(path, f"its mask has {mask.shape[1]} x {mask.shape[0]} pixels, the image {size[1]} x {size[0]}")
    return mask


def divided(mask: NDArray[np.int64], numbers: NDArray[np.int64]) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """Turn a mask of numbers into places [H, W] in those of them that occur, and these numbers [n].

    numbers: those that count, rising; all others are NOWHERE.

    >>> divided(np.array([[7, 7, 255], [3, 7, 255]]), np.array([0, 3, 7]))
    (array([[ 1,  1, -1],
           [ 0,  1, -1]], dtype=int16), array([3, 7]))
    """
    values, places = np.unique(mask, return_inverse=True)
    counted = np.isin(values, numbers)
    place = np.where(counted, np.cumsum(counted) - 1, NOWHERE).astype(np.int16)
    return place[places.reshape(mask.shape)], values[counted]
