"""What a method may use of the run that it is in, before the first step and after the last."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ssl_vit.backbones.backbone import Backbone, Colour
from ssl_vit.data.batch import Batch
from ssl_vit.data.loader import RegionBoxes
from ssl_vit.data.sources import Source


class Workspace(Protocol):
    """A run as its method sees it; the run's own folder is ``folder``."""

    folder: Path
    images: Source
    device: torch.device
    seed: int
    mean: Colour
    std: Colour
    workers: int  # processes that read images
    max_bad: float  # share of unreadable images that is borne
    weights: str | None  # the file that the backbone began with; None where it began with random numbers
    regions: RegionBoxes | None  # boxes of every image, set by a method whose plan asks for some

    def kept(self, name: str, make: Callable[[Path], object]) -> Path:
        """The file RUN/``name``, which ``make`` writes if it is not there: once a run, by the first process alone."""
        ...

    def batches(self, steps: int, seed: int) -> Iterable[Batch]:
        """So many batches of the views that the method's plan asks for; its length is their number."""
        ...

    def views(self, batch: Batch) -> list[Tensor]:
        """A batch as a step gets it: [count * B, 3, S, S] of each View, normalised, on the device; then boxes."""
        ...

    def described(self, backbone: Backbone) -> dict[str, Any]:
        """What a file of weights has to say of a backbone so that it can be built again."""
        ...
