"""Selective search grows regions from colour and texture, and ranks those first that stand out longest.

The idea is Uijlings et al.'s (2013, doi 10.1007/s11263-013-0620-5): group regions hierarchically and take the box of
every region on the way. Three things differ, each because it finds more objects in 30 boxes or costs less: the grid is
of 64 x 64 cells; Ward's criterion (see ``regions``) takes the place of histograms; and boxes are ranked by what it
costs to make the region part of another one, which is high for what is large and unlike its surroundings, instead of
by a random weight on its place in the hierarchy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ssl_vit.data.crops import Box, resize
from ssl_vit.proposals.prior import Boxes, Pixels, Prior
from ssl_vit.proposals.ranking import best_boxes
from ssl_vit.proposals.regions import grow

_GRID = 64  # cells a side
_LEAST = 3  # cells a side of a box
_TEXTURE = 2.0  # weight of the density of edges beside colours
_AROUND = 2  # cells on each side over which it is averaged


@dataclass(frozen=True)
class SelectiveSearch(Prior):
    """The prior boxes regions that stand out from what is around them; it is DETReg's default (arXiv 2106.04550)."""

    name: ClassVar[str] = "selective_search"

    @property
    def side(self) -> int:
        """The image must be twice the grid, so that cells are always of resampled pixels."""
        return 2 * _GRID

    def look(self, image: Pixels, index: int) -> Boxes:
        """Find the boxes from the image alone, whatever its index and its aspect."""
        cells = resize(image, Box(0, 0, *image.shape[:2]), (_GRID, _GRID), "bilinear")
        grown = grow(cell_features(cells.permute(1, 2, 0).numpy()))
        return best_boxes(grown, (_GRID, _GRID), _LEAST, self.count)


def cell_features(cells: Pixels) -> NDArray[np.float32]:
    """Compute colour and texture of cells [H, W, 3], float32 [H, W, 4]: L*, a*, b*, and the density of edges around."""
    colour = lab(cells)
    down, right = np.gradient(colour, axis=(0, 1))
    edges = np.sqrt((down**2 + right**2).sum(-1))
    texture = _mean_around(_mean_around(edges, 0), 1)
    return np.concatenate([colour, _TEXTURE * texture[..., None]], -1)


def lab(rgb: Pixels) -> NDArray[np.float32]:
    """Convert sRGB [..., 3] to CIE L* (0 to 100), a* and b*, under daylight (D65)."""
    linear = _LINEAR[rgb] @ _TO_XYZ.T
    cone = np.where(linear > (6 / 29) ** 3, np.cbrt(linear), linear * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(cone, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1, dtype=np.float32)


_STEPS = np.arange(256) / 255
_LINEAR = np.where(_STEPS > 0.04045, ((_STEPS + 0.055) / 1.055) ** 2.4, _STEPS / 12.92).astype(np.float32)
_TO_XYZ = np.array(  # IEC 61966-2-1; each row divided by its sum, so that white is (1, 1, 1)
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32
)
_TO_XYZ /= _TO_XYZ.sum(1, keepdims=True)


def _mean_around(values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """The mean over so many cells on each side, the edge repeated."""
    width = 2 * _AROUND + 1
    padded = np.pad(values, [(_AROUND, _AROUND) if each == axis else (0, 0) for each in range(values.ndim)], "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis)
    mean: NDArray[np.float32] = windows.mean(-1)
    return mean
