"""What a loss looks like around some weights: its largest curvature, and its values along directions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

_STEP = 1e-4  # along a direction of length 1, between two gradients whose difference is the curvature
_CLOSE = 1e-3  # relative error of an eigenvalue below which it is found

Direction = list[Tensor]
"""A tensor for each of the weights, of its shape."""


class Eigenvalue(NamedTuple):
    """The largest one that was found, and how."""

    value: float
    iterations: int
    found: bool  # to a thousandth


class Landscape:
    """The mean of some losses as a function of weights, which are put back after each look.

    The weights should be float64: curvature is the difference of gradients, which works for every loss, also those
    whose gradient torch can't differentiate again.
    """

    def __init__(self, weights: Sequence[nn.Parameter], losses: Sequence[Callable[[], Tensor]]) -> None:
        """losses: scalars [] of the weights, each the same for the same weights, as of batches of images."""
        self.weights, self.losses = list(weights), losses
        self._centre = [each.detach().clone() for each in self.weights]

    def loss(self, *steps: tuple[float, Direction]) -> float:
        """The loss at the weights plus these multiples of directions."""
        self._go(steps)
        with torch.no_grad():
            found = math.fsum(float(loss()) for loss in self.losses) / len(self.losses)
        self._go(())
        return found

    def gradient(self, *steps: tuple[float, Direction]) -> Direction:
        """The gradient there."""
        self._go(steps)
        total = [torch.zeros_like(each) for each in self.weights]
        for loss in self.losses:
            parts = torch.autograd.grad(loss(), self.weights, allow_unused=True)
            for sum_, part in zip(total, parts, strict=True):
                if part is not None:
                    sum_ += part / len(self.losses)
        self._go(())
        return total

    def curvature(self, direction: Direction) -> Direction:
        """The Hessian times a direction of length 1, by central differences of the gradient."""
        after, before = self.gradient((_STEP, direction)), self.gradient((-_STEP, direction))
        return [(a - b) / (2 * _STEP) for a, b in zip(after, before, strict=True)]

    @torch.no_grad()
    def _go(self, steps: Sequence[tuple[float, Direction]]) -> None:
        for i, (weight, centre) in enumerate(zip(self.weights, self._centre, strict=True)):
            weight.copy_(sum((far * direction[i] for far, direction in steps), centre))


def largest_eigenvalue(landscape: Landscape, most: int, seed: int) -> Eigenvalue:
    """The largest eigenvalue of the Hessian, by Lanczos' iteration from a random direction, in at most so many steps.

    A step is a product with the Hessian, as one of power iteration, which finds the eigenvalue furthest from 0 alone,
    and slowly where others are near. Here the value only rises from step to step, up to the largest one.
    """
    vector = unit(random_direction(landscape.weights, seed))
    before = [torch.zeros_like(each) for each in vector]
    along, beside = list[float](), [0.0]  # the two diagonals of the Hessian among the directions so far
    for _ in range(most):
        image = landscape.curvature(vector)
        along.append(dot(vector, image))
        parts = zip(image, vector, before, strict=True)
        image = [h - along[-1] * now - beside[-1] * then for h, now, then in parts]
        beside.append(math.sqrt(dot(image, image)))
        small = np.diag(along) + np.diag(beside[1:-1], 1) + np.diag(beside[1:-1], -1)
        values, vectors = np.linalg.eigh(small)
        error = beside[-1] * abs(float(vectors[-1, -1]))  # some eigenvalue is as near as this
        if error <= _CLOSE * abs(float(values[-1])):
            break
        before, vector = vector, [each / beside[-1] for each in image]
    return Eigenvalue(float(values[-1]), len(along), error <= _CLOSE * abs(float(values[-1])))


def random_direction(weights: Sequence[Tensor], seed: int) -> Direction:
    """Independent normal numbers, the same for a seed on every device."""
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(each.shape, generator=source, dtype=each.dtype).to(each.device) for each in weights]


def filter_normalised(weights: Sequence[Tensor], seed: int) -> Direction:
    """A random direction of which each filter is as long as the weights' own (1712.09913); 0 for biases and norms.

    A filter is what gives one output. So directions of networks with other scales of weights can be compared.
    """
    found = []
    for weight, drawn in zip(weights, random_direction(weights, seed), strict=True):
        if weight.ndim < 2:
            found.append(torch.zeros_like(drawn))
            continue
        lengths = [each.detach().flatten(1).norm(dim=1) for each in (weight, drawn)]
        scale = lengths[0] / lengths[1].clamp_min(1e-12)
        found.append(drawn * scale.view(-1, *[1] * (weight.ndim - 1)))
    return found


def dot(a: Direction, b: Direction) -> float:
    """The product of two directions."""
    return math.fsum(float((x * y).sum()) for x, y in zip(a, b, strict=True))


def unit(direction: Direction) -> Direction:
    """The direction with length 1."""
    length = math.sqrt(dot(direction, direction))
    return [each / length for each in direction]
