"""Blur: out of focus, through frosted glass, in motion, while zooming."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_vit.eval.corruptions.filters import FloatPixels, enlarged, moved, smoothed


def defocus_blur(image: NDArray[np.uint8], severity: int, rng: np.random.Generator) -> FloatPixels:
    """Every pixel becomes the mean over a disk with a soft edge."""
    radius, soft = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    reach = max(8, radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.float64)
    taps = 1 if radius <= 8 else 2  # on each side
    disk = smoothed(disk / disk.sum(), soft, edge="reflect", truncate=taps / soft)
    planes = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[:, None]
    padded = torch.nn.functional.pad(planes, (reach,) * 4, mode="reflect")
    blurred: FloatPixels = (
        torch.nn.functional.conv2d(padded, torch.from_numpy(disk).float()[None, None])[:, 0].permute(1, 2, 0).numpy()
    )
    return blurred


def glass_blur(image: NDArray[np.uint8], severity: int, rng: np.random.Generator) -> FloatPixels:
    """The image is smoothed, its pixels are scattered, and it is smoothed again.

    The paper says that pixels are exchanged; its code overwrites each by a neighbour, and so does this.
    """
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[severity - 1]
    height, width = image.shape[:2]
    soft = (255 * smoothed(image / 255, sigma)).astype(np.uint8)
    rows, columns = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    places = (rows[:, None] * width + columns).ravel()
    came_from = list(range(height * width))
    for _ in range(rounds):
        right, down = rng.integers(-reach, reach, size=(len(places), 2)).T
        # One after the other, each seeing what the ones before it have done; plain numbers are fastest here.
        for place, neighbour in zip(places.tolist(), (places + down * width + right).tolist(), strict=True):
            came_from[place] = came_from[neighbour]
    return 255 * smoothed(soft.reshape(-1, 3)[came_from].reshape(image.shape) / 255, sigma)


def motion_blur(image: NDArray[np.uint8], severity: int, rng: np.random.Generator) -> FloatPixels:
    """The camera moves within 45 degrees of the horizontal."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    return moved(image.astype(np.float32), radius, sigma, rng.uniform(-45, 45))


def zoom_blur(image: NDArray[np.uint8], severity: int, rng: np.random.Generator) -> FloatPixels:
    """The image becomes the mean of itself and of more and more enlarged ones."""
    end, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity - 1]
    pixels, factors = image.astype(np.float32), np.arange(1, end, step)
    total = pixels.copy()
    for factor in factors:
        total += enlarged(pixels, float(factor))[: image.shape[0], : image.shape[1]]
    return total / (len(factors) + 1)
