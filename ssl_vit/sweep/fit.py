"""How the error falls with scale: a power law with saturation, as of Scaling Vision Transformers (arXiv 2106.04560)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST = 5  # sizes that four unknowns are fitted to


@dataclass(frozen=True)
class PowerLaw:
    """error(x) = floor + factor * (x / unit + shift) ** -power, in percent."""

    unit: float
    factor: float
    power: float
    floor: float
    shift: float

    def __call__(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The error at each x, percent."""
        return np.asarray(self.floor + self.factor * (x / self.unit + self.shift) ** -self.power)

    def __str__(self) -> str:
        return f"{self.floor:.1f} + {self.factor:.3g} (x / {self.unit:.3g} + {self.shift:.2g})^-{self.power:.2g}"


def fitted(x: Sequence[float], error: Sequence[float]) -> PowerLaw | None:
    """Fit the lowest error at each x, in logarithms; None for fewer than five different x.

    >>> x = np.array([1.0, 2, 4, 8, 16, 32])
    >>> law = fitted(x, 10 + 40 * (x / 4) ** -0.7)
    >>> round(law.power, 2), round(law.floor, 1)
    (0.7, 10.0)
    """
    from scipy.optimize import least_squares

    best = frontier(x, error)
    if len(best) < FEWEST:
        return None
    places, lowest = (np.array(column) for column in zip(*best, strict=True))
    unit = float(np.exp(np.log(places).mean()))
    top = float(lowest.min())

    def off(unknown: NDArray[np.float64]) -> NDArray[np.float64]:
        factor, power, floor, shift = unknown
        return np.asarray(np.log(floor + factor * (places / unit + shift) ** -power) - np.log(lowest))

    starts = [
        (float(np.median(lowest)) * (1 - share), power, share * top, 0.0)
        for share in (0.1, 0.6)
        for power in (0.2, 0.8)
    ]
    bounds = ([1e-9, 1e-3, 0.0, 0.0], [1e4, 4.0, top, 10.0])
    found = min((least_squares(off, start, bounds=bounds) for start in starts), key=lambda each: each.cost)
    return PowerLaw(unit, *map(float, found.x))


def frontier(x: Sequence[float], error: Sequence[float]) -> list[tuple[float, float]]:
    """Keep the lowest error at each x, and of those what no smaller x reaches, by rising x.

    >>> frontier([1, 1, 2, 3], [50, 40, 45, 30])
    [(1, 40), (3, 30)]
    """
    lowest: dict[float, float] = {}
    for place, value in zip(x, error, strict=True):
        lowest[place] = min(value, lowest.get(place, value))
    kept = list[tuple[float, float]]()
    for place, value in sorted(lowest.items()):
        if not kept or value < kept[-1][1]:
            kept.append((place, value))
    return kept


def scale_of(folder: Path, over: str) -> float:
    """How large a cell's run is: images seen, parameters, or 1e9 multiply-adds of all its images, forward.

    Raises:
        UserError: the run's folder lacks its configuration or its weights.
    """
    from ssl_vit.config import load_config
    from ssl_vit.run.finish import scanned

    train: Any = load_config([folder / "config.yaml"]).train
    batch, epochs = int(train.batch_size), float(train.epochs)
    images = int(scanned(folder).get("images", 0)) // batch * batch * epochs
    if over == "images":
        return images
    import torch

    from ssl_vit.eval.budget import gmacs
    from ssl_vit.eval.weights import load_backbone

    network = load_backbone(folder).eval()
    if over == "parameters":
        return float(network.info.parameters)
    return images * gmacs(network, torch.zeros(1, 3, *network.info.size))


def scales(cells: Sequence[Mapping[str, Any]], out: Path, over: str) -> list[tuple[float, float]]:
    """(scale, error in percent) of each cell that has a score."""
    return [(scale_of(out / cell["cell"], over), 100 - cell["score"]) for cell in cells if cell["score"] is not None]
