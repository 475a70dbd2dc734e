"""The fifteen corruptions of ImageNet-C at five severities (Hendrycks and Dietterich, arXiv 1903.12261).

Pixel for pixel those of the package ``imagecorruptions`` (which today's numpy and scikit-image can't import), within 1
of 255, but for frost: its photographs may not be passed on, so that ours is drawn, as bright and as uneven as theirs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ssl_vit.eval.corruptions import blur, digital, noise, weather

# (image uint8 [H, W, 3], severity 1 to 5, where what is random comes from) -> [H, W, 3], 0 to 255 before clipping
Corruption = Callable[[NDArray[np.uint8], int, np.random.Generator], NDArray[np.floating]]

CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
}


def corrupt(image: NDArray[np.uint8], name: str, severity: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """An image uint8 [H, W, 3] of at least 32 pixels a side comes back corrupted, in the same shape; severity 1 to 5.

    >>> white = np.full((32, 32, 3), 255, np.uint8)
    >>> corrupt(white, "contrast", 5, np.random.default_rng(0)).min()
    np.uint8(255)
    """
    found: NDArray[np.uint8] = CORRUPTIONS[name](image, severity, rng).clip(0, 255).astype(np.uint8)
    return found
