"""A tiny run and tiny folders of real image files."""

import numpy as np
import pytest
from PIL import Image

from tests.export.conftest import TINY_VIT, randomised, written

MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.25, 0.2)


def draw(label, seed):
    """A noisy picture, its class in the direction of its stripes, of a size of its own."""
    rng = np.random.default_rng([label, seed])
    height, width = rng.integers(36, 80, 2)
    y, x = np.mgrid[:height, :width]
    angle = label * np.pi / 3 + rng.normal(scale=0.1)
    stripes = np.sin((x * np.cos(angle) + y * np.sin(angle)) * rng.uniform(0.5, 0.7) + rng.uniform(0, 6))
    pixels = 127 + 60 * stripes[..., None] + rng.normal(scale=25, size=(height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def folder_of(path, per_class, classes=("ash", "birch", "cedar"), seed=0):
    for label, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for i in range(per_class):
            draw(label, 1000 * seed + i).save(path / name / f"{i:03}.{'jpg' if i % 2 else 'png'}")
    return path


@pytest.fixture(scope="session")
def vit():
    return randomised("vit_tiny_patch16_224", model_args=TINY_VIT)


@pytest.fixture(scope="session")
def run(vit, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    written(vit, path / "export", mean=MEAN, std=STD, description={})
    return path


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    folder_of(path / "train", 40)
    folder_of(path / "val", 15, seed=1)
    return path
