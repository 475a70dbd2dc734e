"""Pictures made by rule, with smooth areas, edges and texture, as a photograph has."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssl_vit.data.decode import Row, decode


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    phase = rng.uniform(0, 6, (3, 1, 1))
    waves = np.sin(9 * x + phase) * np.cos(7 * y - phase) + 0.4 * np.sign(np.sin(31 * (x + y)))
    noisy = 128 + 70 * waves + rng.normal(0, 8, waves.shape)
    return np.ascontiguousarray(noisy.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def save_photos(folder: Path, count: int, size: tuple[int, int] = (40, 48), suffix: str = "png") -> None:
    """Files 000.png, 001.png …, every one different."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(photo(*size, seed=number)).save(folder / f"{number:03d}.{suffix}")


class Files:
    """Files in memory, as rows that a library keeps."""

    def __init__(self, *files: bytes) -> None:
        self.files = files

    def read(self, index: int) -> bytes:
        return self.files[index]


def decoded(data: bytes, name: str, **options: Any) -> NDArray[np.uint8]:
    """What `decode` makes of a file in memory; the name is for the error."""
    return decode(Row(Files(data), 0, name), **options)
