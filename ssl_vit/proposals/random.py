"""Random boxes are the baseline that every other prior has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ssl_vit.data.crops import sample_rng
from ssl_vit.proposals.prior import Boxes, Pixels, Prior

_STREAM = 5  # of sample_rng
_LEAST = 0.05  # of the image's side


@dataclass(frozen=True)
class RandomBoxes(Prior):
    """Width and height are uniform from a 20th of the image on, then the place, as UP-DETR draws (arXiv 2011.09094)."""

    seed: int = 0

    name: ClassVar[str] = "random"

    def look(self, image: Pixels, index: int) -> Boxes:
        """Draw boxes from (seed, index) alone; the first ones are the same for any count."""
        uniform = sample_rng(self.seed, 0, index, _STREAM).random((self.count, 2, 2))
        size = _LEAST + (1 - _LEAST) * uniform[:, 0]
        start = uniform[:, 1] * (1 - size)
        return np.concatenate([start, start + size], 1).astype(np.float32)
