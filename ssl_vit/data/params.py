"""The parameters of a crop: a row of numbers, whose columns have names. Needs no torch."""

from __future__ import annotations

from enum import IntEnum


class Column(IntEnum):
    """Where each parameter of a crop stands in its row [P]: first its colours, for `augment`, then its place."""

    BRIGHTNESS = 0  # a factor, 1 changes nothing; the numbers of these four operations are their columns
    CONTRAST = 1  # likewise
    SATURATION = 2  # likewise
    HUE = 3  # a fraction of the circle, 0 changes nothing
    ORDER = 4  # of the four operations: a row of `jitter.ORDERS`
    GRAY = 5  # 1 for grey
    SIGMA = 6  # of the blur, pixels; 0 is no blur
    SOLARIZE = 7  # 1 for solarised
    LEFT = 8  # of the crop in the image, in shares of the image's sides; for `boxes`
    TOP = 9  # likewise
    RIGHT = 10  # likewise
    BOTTOM = 11  # likewise
    FLIPPED = 12  # 1 for mirrored


JITTER = slice(Column.BRIGHTNESS, Column.ORDER)
"""The columns of brightness, contrast, saturation and hue."""
PLACE = slice(Column.LEFT, Column.FLIPPED + 1)
"""The columns that say where the crop lies."""
UNCHANGED = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""The colours of a crop that is left as it is."""
