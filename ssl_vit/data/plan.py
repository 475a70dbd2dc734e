"""A plan says what each image is turned into: declared by a method, executed by this package. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class View:
    """A view is a kind of crop and what is done to its colours; the defaults change nothing.

    Sizes are pixels, scales are fractions of the image's area, ``*_p`` are probabilities.
    """

    name: str
    count: int
    size: int
    scale: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    flip_p: float = 0.0
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue
    jitter_p: float = 0.0
    gray_p: float = 0.0
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    solarize_p: float = 0.0  # inverts above 128 of 255


@dataclass(frozen=True)
class ViewPlan:
    """The plan lists all the views of an image, in the order in which a batch carries them."""

    views: tuple[View, ...]
    boxes: int = 0  # proposed regions of each image that a batch carries too, in the crops of the first view

    def crops(self) -> int:
        """Count the crops that one image becomes."""
        return sum(view.count for view in self.views)

    def pixels(self) -> int:
        """Count the pixels of all the crops of one image: the cost of a step grows with it."""
        return sum(view.count * view.size**2 for view in self.views)

    def bytes(self) -> int:
        """Count the bytes of all the crops of one image in uint8: what travels from a worker to the training process.

        >>> ViewPlan((View("global", 2, 224), View("local", 8, 96))).bytes()
        522240
        """
        return 3 * self.pixels()

    def scaled(self, size: int, full: int, multiple: int = 1, smallest: int = 1) -> ViewPlan:
        """Make the same plan for crops of ``size`` where they had ``full`` pixels; smaller ones and blur follow.

        Sides stay multiples of ``multiple``, and at least ``smallest`` pixels.

        >>> views = ViewPlan((View("global", 2, 224), View("local", 8, 96))).scaled(112, 224, 16).views
        >>> [view.size for view in views]
        [112, 48]
        """
        if size == full:
            return self
        least = -(-smallest // multiple) * multiple
        return replace(self, views=tuple(_scaled(view, size, full, multiple, least) for view in self.views))


def _scaled(view: View, size: int, full: int, multiple: int, least: int) -> View:
    side = size if view.size == full else max(least, round(view.size * size / full / multiple) * multiple)
    low, high = view.blur_sigma
    return replace(view, size=side, blur_sigma=(low * side / view.size, high * side / view.size))
