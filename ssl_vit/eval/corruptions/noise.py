"""Noise: of the sensor, of few photons, of dead pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssl_vit.eval.corruptions.filters import FloatPixels


def gaussian_noise(image: NDArray[np.uint8], severity: int, rng: np.random.Generator) -> FloatPixels:
    """Normal noise is added to every value, as in poor light."""
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return 255 * (image / 255 + rng.normal(size=image.shape, scale=deviation))


def shot_noise(image: NDArray[np.uint8], severity: int, rng: np.random.Generator) -> FloatPixels:
    """Values are drawn from Poisson's distribution, since light comes in photons."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return 255 * (rng.poisson(image / 255 * photons) / photons)


def impulse_noise(image: NDArray[np.uint8], severity: int, rng: np.random.Generator) -> FloatPixels:
    """Some values become 0 or 255, as salt and pepper."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    hit, salt = rng.random(image.shape) <= share, rng.random(image.shape) <= 0.5
    return np.where(hit, 255.0 * salt, image)
