"""A learner is what ``ssl-vit eval`` trains on scenes to tell weights apart: a detector or a segmenter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from torch import Tensor, nn

from ssl_vit.data.scenes import OnCanvas

S = TypeVar("S", bound=OnCanvas)


class Learner(nn.Module, Generic[S]):
    """A learner takes scenes, which are on the CPU and have an image, all of them, and gives losses."""

    least = 1
    """So many images a step needs."""

    def losses(self, scenes: Sequence[S]) -> dict[str, Tensor]:
        """Return the weighted parts of the loss, to be summed; in training mode."""
        raise NotImplementedError

    def trunk(self) -> nn.Module:
        """Return the backbone in it, which may learn at a rate of its own."""
        raise NotImplementedError
