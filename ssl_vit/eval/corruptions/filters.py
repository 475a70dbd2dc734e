"""What several corruptions are made of: Gaussian smoothing, motion, and enlarging about the centre."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

FloatPixels = NDArray[np.floating]


def smoothed(
    x: FloatPixels, sigma: float | tuple[float, float], edge: str = "edge", truncate: float = 4.0
) -> FloatPixels:
    """The first two axes are smoothed by a Gaussian of `truncate` deviations; edge: numpy's name of the padding."""
    for axis, deviation in enumerate(sigma if isinstance(sigma, tuple) else (sigma, sigma)):
        radius = int(truncate * deviation + 0.5)
        taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / deviation) ** 2)
        around = [(radius, radius) if each == axis else (0, 0) for each in range(x.ndim)]
        padded = np.pad(x, around, mode=edge)  # type: ignore[call-overload]  # its stub lists the names one by one
        length = x.shape[axis]
        found = np.zeros(x.shape)
        for start, tap in enumerate(taps / taps.sum()):
            found += tap * padded.take(range(start, start + length), axis)
        x = found
    return x


def moved(x: FloatPixels, radius: int, sigma: float, angle: float) -> FloatPixels:
    """The image moves towards `angle`, in degrees, and fades as half a Gaussian; beyond the border its edge goes on."""
    height, width = x.shape[:2]
    weights = np.exp(-np.square(np.arange(2 * radius + 1)) / (2 * sigma**2))
    weights /= weights.sum()
    direction = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))
    found = np.zeros(x.shape, np.float32)
    for step, weight in enumerate(weights):
        down, right = (-math.ceil(step * part - 0.5) for part in direction)
        if abs(down) >= height or abs(right) >= width:
            break
        rows, columns = (np.arange(height) - down).clip(0, height - 1), (np.arange(width) - right).clip(0, width - 1)
        found += weight * x[rows[:, None], columns]
    return found


def enlarged(x: FloatPixels, factor: float) -> FloatPixels:
    """The central part of [H, W, C] is enlarged bilinearly, corner on corner, to at least the size it had."""
    part = [math.ceil(side / factor) for side in x.shape[:2]]
    top, left = ((side - kept) // 2 for side, kept in zip(x.shape[:2], part, strict=True))
    pixels = torch.from_numpy(x[top : top + part[0], left : left + part[1]].copy()).permute(2, 0, 1)[None]
    size = [round(kept * factor) for kept in part]
    found: FloatPixels = (
        torch.nn.functional.interpolate(pixels, size, mode="bilinear", align_corners=True)[0].permute(1, 2, 0).numpy()
    )
    return found
