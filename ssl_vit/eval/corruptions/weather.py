"""Weather: snow, frost on the lens, fog, glaring light."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssl_vit.eval.corruptions.filters import FloatPixels, enlarged, moved, smoothed

_LUMA = np.array((0.299, 0.587, 0.114), np.float32)  # ITU-R 601


def snow(image: NDArray[np.uint8], severity: int, rng: np.random.Generator) -> FloatPixels:
    """Flakes fall from two sides over an image that is whitened."""
    mean, deviation, zoom, least, radius, sigma, kept = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    height, width = image.shape[:2]
    x = image.astype(np.float32) / 255
    noise = rng.normal(size=(height, width), loc=mean, scale=deviation)
    flakes = enlarged(noise[..., None], zoom)[..., 0]
    flakes = np.where(flakes < least, 0, flakes).clip(0, 1)
    falling = np.round(255 * moved(flakes, radius, sigma, rng.uniform(-135, -45))) / 255
    falling = falling[:height, :width, None]
    whitened = np.maximum(x, 1.5 * (x @ _LUMA)[..., None] + 0.5)
    return 255 * (kept * x + (1 - kept) * whitened + falling + np.rot90(falling, 2))


def frost(image: NDArray[np.uint8], severity: int, rng: np.random.Generator) -> FloatPixels:
    """Ice lies over a darkened image."""
    kept, ice = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    return kept * image.astype(np.float32) + ice * crystals(image.shape[0], image.shape[1], rng)[..., None]


def crystals(height: int, width: int, rng: np.random.Generator) -> FloatPixels:
    """A picture of ice [H, W], about 0 to 255, is drawn: needles in all directions, denser here and thinner there.

    Its deviation, and the range of its mean, are those of ImageNet-C's five photographs of frost.
    """
    side = max(height, width)
    margin = side // 4  # needles that begin outside would else be drawn along the border
    bed = (height + 2 * margin, width + 2 * margin)
    needles = np.zeros(bed, np.float32)
    for angle in rng.uniform(-180, 180, size=6):
        seeds = (rng.random(bed) < 0.02).astype(np.float32)
        needles = np.maximum(needles, moved(seeds, max(4, side // 12), max(2, side / 24), angle))
    needles = smoothed(needles, side / 250)[margin : margin + height, margin : margin + width]
    ice = needles / needles.max() + 0.6 * plasma(side, 1.8, rng)[:height, :width]
    picture: FloatPixels = 29 * (ice - ice.mean()) / ice.std() + rng.uniform(113, 204)
    return picture


def fog(image: NDArray[np.uint8], severity: int, rng: np.random.Generator) -> FloatPixels:
    """A cloud of plasma lies over the image; the brightest value stays as bright."""
    thick, decay = ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[severity - 1]
    height, width = image.shape[:2]
    x = image / 255
    brightest = x.max()
    clouded = x + thick * plasma(max(height, width), decay, rng)[:height, :width, None]
    seen: FloatPixels = 255 * clouded * brightest / (brightest + thick)
    return seen


def plasma(side: int, decay: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Diamond-square noise in [0, 1], [M, M], is drawn so that it wraps; M is the power of two from `side` on.

    Every point becomes the mean of its four neighbours at this step and a random number from a range that shrinks by
    `decay` at every halving of the step.
    """
    side = 1 << (side - 1).bit_length()
    heights = np.zeros((side, side))
    step, spread = side, 100.0

    def settle(rows: int, columns: int, neighbours: NDArray[np.float64]) -> None:
        around = spread * rng.uniform(-spread, spread, neighbours.shape)
        heights[rows::step, columns::step] = neighbours / 4 + around

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        rows = corners + np.roll(corners, -1, 0)
        settle(half, half, rows + np.roll(rows, -1, 1))
        centres = heights[half::step, half::step]
        settle(0, half, centres + np.roll(centres, 1, 0) + (corners + np.roll(corners, -1, 1)))
        settle(half, 0, centres + np.roll(centres, 1, 1) + (corners + np.roll(corners, -1, 0)))
        step, spread = half, spread / decay
    heights -= heights.min()
    found: NDArray[np.float64] = heights / heights.max()
    return found


def brightness(image: NDArray[np.uint8], severity: int, rng: np.random.Generator) -> FloatPixels:
    """The value of HSV is raised; hue and saturation stay."""
    value = image.max(2, keepdims=True) / 255
    raised = np.minimum(value + (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1], 1)
    coloured: FloatPixels = image * raised / np.where(value > 0, value, 1)
    return np.where(value > 0, coloured, 255 * raised)
