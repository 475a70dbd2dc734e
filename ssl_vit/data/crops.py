"""Random resized crops are cut from one decoded image, in uint8, each with parameters: its colours and its place.

Everything random is a function of (seed, epoch, index), so the views of an image do not depend on the number of
workers, on the order of reading or on where a run was resumed. Colours are only drawn here; ``augment`` applies them
to the whole batch on the training device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_vit.data.params import UNCHANGED, Column
from ssl_vit.data.plan import View, ViewPlan

_ATTEMPTS = 10  # tries at a box that fits, as torchvision's RandomResizedCrop
_BOX, _COLOUR = 2 * _ATTEMPTS + 2, 10  # uniform numbers that a crop takes, used or not
_MAX = 2**64
_KERNELS = {
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
}


class Box(NamedTuple):
    """A box is a rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def sample_rng(seed: int, epoch: int, index: int, stream: int = 0) -> np.random.Generator:
    """Make the random generator of one image in one epoch; `stream` separates independent uses.

    >>> float(sample_rng(0, 3, 7).random()) == float(sample_rng(0, 3, 7).random())
    True
    """
    key = np.array([seed % _MAX, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, epoch, index], dtype=np.uint64)))


def make_views(image: NDArray[np.uint8], plan: ViewPlan, rng: np.random.Generator) -> tuple[list[Tensor], list[Tensor]]:
    """Cut all the crops that a plan asks for from an image [H, W, 3].

    Returns for each View uint8 [count, 3, S, S] (channels last in memory) and float32 [count, len(Column)].
    """
    places = [torch.empty(view.count, view.size, view.size, 3, dtype=torch.uint8) for view in plan.views]
    params = [torch.empty(view.count, len(Column)) for view in plan.views]
    fill_views(image, plan, rng, places, params)
    return [pixels.permute(0, 3, 1, 2) for pixels in places], params


def fill_views(
    image: NDArray[np.uint8], plan: ViewPlan, rng: np.random.Generator, places: list[Tensor], params: list[Tensor]
) -> None:
    """Do as ``make_views`` in memory that is there: for each View uint8 [count, S, S, 3] and float32 [count, P]."""
    for view, pixels, values in zip(plan.views, places, params, strict=True):
        uniform = rng.random((view.count, _BOX + 1 + _COLOUR)).tolist()
        rows = []
        for crop, u in zip(pixels, uniform, strict=True):
            box, flipped = random_box(image.shape[0], image.shape[1], view, u[:_BOX]), u[_BOX] < view.flip_p
            resize(image, box, (view.size, view.size), view.interpolation, out=crop)
            if flipped:
                crop.copy_(crop.flip(1))
            rows.append(draw_colour(view, u[_BOX + 1 :]) + place_of(box, image.shape[0], image.shape[1], flipped))
        values.copy_(torch.tensor(rows))


def random_box(height: int, width: int, view: View, uniform: Sequence[float]) -> Box:
    """Draw a box as torchvision's RandomResizedCrop: area uniform, ratio log-uniform, ten attempts, else central.

    In plain numbers: mostly the first attempt fits, and arrays of ten take ten times as long.
    """
    low, high = math.log(view.ratio[0]), math.log(view.ratio[1])
    for share, place in zip(uniform[:_ATTEMPTS], uniform[_ATTEMPTS : 2 * _ATTEMPTS], strict=True):
        area = height * width * (view.scale[0] + (view.scale[1] - view.scale[0]) * share)
        ratio = math.exp(low + (high - low) * place)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(uniform[-2] * (height - h + 1)), int(uniform[-1] * (width - w + 1)), h, w)
    return _central_box(height, width, view.ratio)


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> Box:
    h, w = height, width
    if width / height < ratio[0]:
        h = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = max(1, round(height * ratio[1]))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def place_of(box: Box, height: int, width: int, flipped: bool) -> list[float]:
    """Give the values of the columns ``PLACE`` for one crop of an image.

    >>> place_of(Box(top=10, left=0, height=20, width=25), 40, 100, flipped=True)
    [0.0, 0.25, 0.25, 0.75, 1.0]
    """
    right, bottom = box.left + box.width, box.top + box.height
    return [box.left / width, box.top / height, right / width, bottom / height, float(flipped)]


def draw_colour(view: View, u: Sequence[float]) -> list[float]:
    """Draw the values of the columns of colours for one crop; jitter factors as torchvision's ColorJitter's."""
    row = list(UNCHANGED)
    jitter, *factors, turn, order, gray, blur, sigma, solarize = u
    if jitter < view.jitter_p:
        *strengths, most = view.jitter
        blends = (Column.BRIGHTNESS, Column.CONTRAST, Column.SATURATION)
        for column, strength, factor in zip(blends, strengths, factors, strict=True):
            low = max(0.0, 1.0 - strength)
            row[column] = low + (1.0 + strength - low) * factor
        row[Column.HUE] = most * (2.0 * turn - 1.0)
        row[Column.ORDER] = float(int(24 * order))
    row[Column.GRAY] = float(gray < view.gray_p)
    if blur < view.blur_p:
        row[Column.SIGMA] = view.blur_sigma[0] + (view.blur_sigma[1] - view.blur_sigma[0]) * sigma
    row[Column.SOLARIZE] = float(solarize < view.solarize_p)
    return row


def resize(
    image: NDArray[np.uint8], box: Box, size: tuple[int, int], mode: str = "bicubic", out: Tensor | None = None
) -> Tensor:
    """Resize a box of an image [H, W, 3] with antialiasing to uint8 [3, h, w], into `out` [h, w, 3] if it is given.

    The kernel works on the decoder's own layout, channels last; it differs from Pillow's bicubic by less than 0.1
    of 255 in the mean. It is called as ``F.interpolate`` calls it, which cannot write into memory that is there.
    """
    part = image[box.top : box.top + box.height, box.left : box.left + box.width]
    pixels = torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1)[None]
    out = torch.empty(*size, 3, dtype=torch.uint8) if out is None else out
    place = out.permute(2, 0, 1)
    _KERNELS[mode](pixels, size, False, None, None, out=place[None])
    return place


def wanted_side(plan: ViewPlan) -> int:
    """Return the short side, in pixels, below which the smallest crop of the plan would have to be enlarged."""
    return max(math.ceil(view.size / math.sqrt(view.scale[0] * view.ratio[0])) for view in plan.views)
