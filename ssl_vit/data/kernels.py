"""numba compiles the colours of `augment` for a CPU: row by row, so that a row stays in the core's nearest cache.

The same operations in the same order, equal to rounding. Values are in [0, 255] until the end.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar, cast

import numba
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ssl_vit.data.jitter import LUMA, OPERATIONS, ORDERS
from ssl_vit.data.params import Column

Array = NDArray[np.float32]
Function = TypeVar("Function", bound=Callable[..., Any])

LINES = 8  # that are worked on together
REACH = 8  # pixels of a blur whose sums are made at once: sigma 2
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = map(int, OPERATIONS)  # columns of the parameters, as numba takes them
_GRAY, _SIGMA, _SOLARIZE = int(Column.GRAY), int(Column.SIGMA), int(Column.SOLARIZE)
_RED, _GREEN, _BLUE = (np.float32(share) for share in LUMA)
_ZERO, _ONE, _TWO, _THREE, _SIX, _MOST = (np.float32(value) for value in (0, 1, 2, 3, 6, 255))
_HALF = np.float32(128)
_TINY = np.float32(1e-30)  # a chroma of nothing, which nothing is divided by


def coloured(images: Tensor, params: Tensor, weights: Tensor, shift: Tensor, scale: Tensor, out: Tensor) -> None:
    """Colour, blur and normalise uint8 [N, 3, H, W], best channels last in memory, into float32 `out`.

    params: see `augment`; weights: of the blur, [N, 2R + 1]; shift, scale: what is added, and before that
    multiplied by, of values in [0, 1].
    """
    place = out if out.is_contiguous() else torch.empty(out.shape)
    middle = weights.shape[1] // 2
    arrays = [
        images.permute(0, 2, 3, 1).contiguous().flatten(1),
        torch.tensor(ORDERS)[params[:, Column.ORDER].long()],
        params,
        F.pad(weights[:, middle:], (0, max(0, REACH - middle))),
        place,
    ]
    constant = shift.flatten().numpy(), scale.flatten().numpy() / _MOST
    threads = min(len(images), torch.get_num_threads())
    parts = [[part.numpy() for part in array.tensor_split(threads)] for array in arrays]
    jobs: list[tuple[Any, ...]] = [(*part, *constant) for part in zip(*parts, strict=True)]
    if threads == 1:
        _crops(*jobs[0])
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda job: _crops(*job), jobs))
    if place is not out:
        out.copy_(place)


def _compiled(function: Function, fast: frozenset[str] = frozenset({"contract", "nsz"})) -> Function:
    kernel = numba.njit(nogil=True, fastmath=set(fast), error_model="numpy")(function)
    with suppress(RuntimeError):  # nowhere to write: compiled again at each start
        kernel.enable_caching()
    return cast(Function, kernel)


def _reordered(function: Function) -> Function:
    return _compiled(function, frozenset({"contract", "nsz", "reassoc"}))  # sums of several terms at once


@_compiled
def _load(row: NDArray[np.uint8], red: Array, green: Array, blue: Array) -> None:
    for x in range(len(red)):
        red[x] = np.float32(row[np.uintp(3 * x)])
        green[x] = np.float32(row[np.uintp(3 * x + 1)])
        blue[x] = np.float32(row[np.uintp(3 * x + 2)])


@_compiled
def _clamped(value: np.float32, most: np.float32) -> np.float32:
    return min(max(value, _ZERO), most)


@_reordered
def _sum_grey(red: Array, green: Array, blue: Array) -> np.float32:
    total = _ZERO
    for x in range(len(red)):
        total += _RED * red[x] + _GREEN * green[x] + _BLUE * blue[x]
    return total


@_compiled
def _mixed(values: Array, factor: np.float32, other: np.float32) -> None:
    """Brightness and contrast: with black, or with the mean grey of the crop."""
    for x in range(len(values)):
        values[x] = _clamped(factor * values[x] + other, _MOST)


@_compiled
def _saturated(red: Array, green: Array, blue: Array, factor: np.float32) -> None:
    for x in range(len(red)):
        other = (_ONE - factor) * (_RED * red[x] + _GREEN * green[x] + _BLUE * blue[x])
        red[x] = _clamped(factor * red[x] + other, _MOST)
        green[x] = _clamped(factor * green[x] + other, _MOST)
        blue[x] = _clamped(factor * blue[x] + other, _MOST)


@_compiled
def _turned(red: Array, green: Array, blue: Array, turn: np.float32) -> None:
    """The hue, on a hexagon of length 6: red at 0, green at 2, blue at -2."""
    for x in range(len(red)):
        r, g, b = red[x], green[x], blue[x]
        value, least = max(max(r, g), b), min(min(r, g), b)
        chroma = value - least
        share = _ONE / max(chroma, _TINY)
        angle = (r - g) * share - _TWO
        angle = (b - r) * share + _TWO if value == g else angle
        angle = (g - b) * share if value == r else angle
        angle += turn
        angle = angle - _SIX if angle > _THREE else angle
        angle = angle + _SIX if angle < -_THREE else angle
        red[x] = least + chroma * _clamped(_TWO - abs(angle), _ONE)
        green[x] = least + chroma * _clamped(abs(angle + _ONE) - _ONE, _ONE)
        blue[x] = least + chroma * _clamped(abs(angle - _ONE) - _ONE, _ONE)


@_compiled
def _jittered(red: Array, green: Array, blue: Array, operation: int, values: Array, mean: np.float32) -> None:
    """One operation of the jitter on a row."""
    factor = values[operation]
    if operation == _HUE:
        if factor != _ZERO:
            _turned(red, green, blue, _SIX * factor)
    elif factor == _ONE:
        return
    elif operation == _SATURATION:
        _saturated(red, green, blue, factor)
    else:
        other = (_ONE - factor) * mean if operation == _CONTRAST else _ZERO
        for channel in (red, green, blue):
            _mixed(channel, factor, other)


@_compiled
def _grayed(red: Array, green: Array, blue: Array) -> None:
    for x in range(len(red)):
        red[x] = green[x] = blue[x] = _RED * red[x] + _GREEN * green[x] + _BLUE * blue[x]


@_compiled
def _bordered(lines: Array, width: int, radius: int, plane: Array) -> None:
    """Lines one after the other, into those of a plane, their ends repeated."""
    for y in range(len(lines) // width):
        line = lines[y * width : (y + 1) * width]
        plane[y, :radius], plane[y, radius : radius + width], plane[y, radius + width :] = line[0], line, line[-1]


@_compiled
def _blurred(plane: Array, w: Array, edge: np.float32, shift: np.float32, scale: np.float32, out: Array) -> None:
    """A plane [H + 2 R, W + 2 R], its borders repeated, across lines and then along them, to [H, W]; normalised."""
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8]
    radius = len(w) - 1
    line, found = np.empty(plane.shape[1], np.float32), np.empty(out.shape[1], np.float32)
    p, q = plane[radius - REACH :], line[radius - REACH :]
    for y in range(len(out)):
        for x in range(len(line)):  # all terms at once, so that sums stay in registers
            near = w1 * (p[y + 7, x] + p[y + 9, x]) + w2 * (p[y + 6, x] + p[y + 10, x])
            near += w3 * (p[y + 5, x] + p[y + 11, x]) + w4 * (p[y + 4, x] + p[y + 12, x])
            far = w5 * (p[y + 3, x] + p[y + 13, x]) + w6 * (p[y + 2, x] + p[y + 14, x])
            far += w7 * (p[y + 1, x] + p[y + 15, x]) + w8 * (p[y, x] + p[y + 16, x])
            line[x] = w0 * p[y + 8, x] + near + far
        for tap in range(REACH + 1, len(w)):
            for x in range(len(line)):
                line[x] += w[tap] * (plane[y + radius - tap, x] + plane[y + radius + tap, x])
        for x in range(len(found)):
            near = w1 * (q[x + 7] + q[x + 9]) + w2 * (q[x + 6] + q[x + 10])
            near += w3 * (q[x + 5] + q[x + 11]) + w4 * (q[x + 4] + q[x + 12])
            far = w5 * (q[x + 3] + q[x + 13]) + w6 * (q[x + 2] + q[x + 14])
            far += w7 * (q[x + 1] + q[x + 15]) + w8 * (q[x] + q[x + 16])
            found[x] = w0 * q[x + 8] + near + far
        for tap in range(REACH + 1, len(w)):
            for x in range(len(found)):
                found[x] += w[tap] * (line[radius + x - tap] + line[radius + x + tap])
        _normalised(found, edge, shift, scale, out[y])


@_compiled
def _normalised(values: Array, edge: np.float32, shift: np.float32, scale: np.float32, out: Array) -> None:
    """Solarized from the edge on, then normalised."""
    for x in range(len(out)):
        value = values[x]
        out[x] = (_MOST - value if value >= edge else value) * scale + shift


@_compiled
def _mean_at_contrast(pixels: NDArray[np.uint8], order: NDArray[np.int64], values: Array, tile: Array) -> np.float32:
    """The mean grey of a crop when contrast's turn comes."""
    total = np.float64(0)
    for start in range(0, len(pixels) // 3, tile.shape[1]):
        count = min(tile.shape[1], len(pixels) // 3 - start)
        red, green, blue = tile[0, :count], tile[1, :count], tile[2, :count]
        _load(pixels[3 * start :], red, green, blue)
        for operation in order:
            if operation == _CONTRAST:
                break
            _jittered(red, green, blue, operation, values, _ZERO)
        total += _sum_grey(red, green, blue)
    return np.float32(total / (len(pixels) // 3))


@_compiled
def _crops(
    pixels: NDArray[np.uint8],  # [N, H W 3]
    orders: NDArray[np.int64],  # [N, 4]
    params: Array,  # [N, P]
    weights: Array,  # [N, R + 1], the middle one first
    out: Array,  # [N, 3, H, W]
    shift: Array,  # [3]
    scale: Array,  # [3]
) -> None:
    height, width, radius = out.shape[2], out.shape[3], weights.shape[1] - 1
    tile = np.empty((3, LINES * width), np.float32)
    planes = np.empty((3, height + 2 * radius, width + 2 * radius), np.float32)
    for n in range(len(pixels)):
        values, order, mean = params[n], orders[n], _ZERO
        edge = _HALF if values[_SOLARIZE] > 0 else np.float32(np.inf)
        if values[_CONTRAST] != _ONE:
            mean = _mean_at_contrast(pixels[n], order, values, tile)
        for top in range(0, height, LINES):
            lines = min(LINES, height - top)
            red, green, blue = tile[0, : lines * width], tile[1, : lines * width], tile[2, : lines * width]
            _load(pixels[n, 3 * top * width :], red, green, blue)
            for operation in order:
                _jittered(red, green, blue, operation, values, mean)
            if values[_GRAY] > 0:
                _grayed(red, green, blue)
            for c, channel in enumerate((red, green, blue)):
                if values[_SIGMA] > 0:
                    _bordered(channel, width, radius, planes[c, radius + top :])
                else:
                    _normalised(channel, edge, shift[c], scale[c], out[n, c, top : top + lines].reshape(-1))
        if values[_SIGMA] > 0:
            for c in range(3):
                plane = planes[c]
                plane[:radius], plane[radius + height :] = plane[radius], plane[radius + height - 1]
                _blurred(plane, weights[n], edge, shift[c], scale[c], out[n, c])
