"""What happens to files: little contrast, warping, few pixels, strong compression."""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ssl_vit.eval.corruptions.filters import FloatPixels, smoothed


def contrast(image: NDArray[np.uint8], severity: int, rng: np.random.Generator) -> FloatPixels:
    """Every channel comes nearer to its mean."""
    x = image / 255
    mean = x.mean((0, 1), keepdims=True)
    flat: FloatPixels = 255 * ((x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1] + mean)
    return flat


def elastic_transform(image: NDArray[np.uint8], severity: int, rng: np.random.Generator) -> FloatPixels:
    """Small parts are pushed to and fro."""
    strength = 250 * (0.05, 0.065, 0.085, 0.1, 0.12)[severity - 1]
    height, width = image.shape[:2]
    furthest = 0.005 * height
    right, down = (
        strength
        * smoothed(
            rng.uniform(-furthest, furthest, size=(height, width)),
            (0.01 * height, 0.01 * width),
            edge="symmetric",
            truncate=3,
        )
        for _ in range(2)
    )
    y, x = np.mgrid[:height, :width]
    # grid_sample counts from -1 to 1 between the outer edges of the border pixels
    grid = np.stack([(2 * (x + right) + 1) / width - 1, (2 * (y + down) + 1) / height - 1], -1)
    planes = torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[None]
    sampled = torch.nn.functional.grid_sample(
        planes, torch.from_numpy(grid)[None], mode="bilinear", padding_mode="reflection", align_corners=False
    )
    warped: FloatPixels = sampled[0].permute(1, 2, 0).numpy()
    return warped


def pixelate(image: NDArray[np.uint8], severity: int, rng: np.random.Generator) -> FloatPixels:
    """The image is shrunk, and enlarged again in blocks."""
    height, width = image.shape[:2]
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    small = Image.fromarray(image).resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST), dtype=np.float32)


def jpeg_compression(image: NDArray[np.uint8], severity: int, rng: np.random.Generator) -> FloatPixels:
    """The image is saved as a small JPEG and read again."""
    with io.BytesIO() as file:
        Image.fromarray(image).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
        return np.asarray(Image.open(file), dtype=np.float32)
