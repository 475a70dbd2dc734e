"""Writes corruptions.npz: a picture and what the package ``imagecorruptions`` 1.1.2 makes of it.

    pip install --no-deps imagecorruptions==1.1.2 && pip install scikit-image opencv-python-headless scipy
    python tests/golden/make_corruptions.py

The package is older than today's libraries; what it asks of them and no longer finds is handed to it here. Its random
numbers come from numpy's old generator with seed 0, those of salt and pepper from default_rng(0).
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("corruptions.npz")
DRAWN = "frost"  # its photographs are not ours to pass on


def picture() -> np.ndarray:
    """Soft shapes, a sharp edge, noise, white and black: uint8 [35, 38, 3].

    At some other heights, 36 for one, rounding makes the package's zoom end in a black line."""
    y, x = np.mgrid[:35, :38] / 32
    waves = np.stack([np.sin(5 * x + 3 * y), np.cos(4 * y), x * y], -1) * 90 + 128
    waves[12:24, 8:20] = (200, 40, 90)
    waves[:4, :4], waves[-4:, -4:] = 0, 255
    noise = np.random.default_rng(7).normal(scale=6, size=waves.shape)
    return (waves + noise).clip(0, 255).astype(np.uint8)


def library() -> ModuleType:
    import scipy.ndimage
    import skimage.filters
    import skimage.util

    gaussian, random_noise = skimage.filters.gaussian, skimage.util.random_noise

    def as_it_was(x: np.ndarray, sigma: Any, multichannel: bool = False, **options: Any) -> Any:
        return gaussian(x, sigma=sigma, channel_axis=-1 if multichannel else None, **options)

    np.float_ = np.float64
    skimage.filters.gaussian = as_it_was
    skimage.util.random_noise = lambda x, **options: random_noise(x, rng=np.random.default_rng(0), **options)
    moved: Any = ModuleType("scipy.ndimage.interpolation")
    moved.map_coordinates = scipy.ndimage.map_coordinates
    found = importlib.util.find_spec("imagecorruptions")
    resources: Any = ModuleType("pkg_resources")
    resources.resource_filename = lambda name, path: str(Path(found.origin).parent / path)
    sys.modules |= {"scipy.ndimage.interpolation": moved, "pkg_resources": resources}
    return importlib.import_module("imagecorruptions")


def main() -> None:
    package, image = library(), picture()
    found = {"picture": image}
    for name in package.get_corruption_names():
        for severity in range(1, 6):
            if name != DRAWN:
                np.random.seed(0)
                found[f"{name}_{severity}"] = package.corrupt(image, corruption_name=name, severity=severity)
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
