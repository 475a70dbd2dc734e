"""SIGReg, LeJEPA's loss: views that agree; the characteristic function of projections is a normal distribution's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.methods.gaussian import Gaussian, directions
from ssl_vit.methods.joint import of_all_ranks
from ssl_vit.methods.method import Progress
from ssl_vit.methods.sigreg_config import Config

KNOTS, END = 17, 3.0  # where characteristic functions are compared (LeJEPA): as many points of [0, END]
SPACING = END / (KNOTS - 1)


class SIGReg(Gaussian):
    """The regulariser compares the characteristic function of the projections with that of a normal distribution."""

    config: Config

    def __init__(self, config: Config, backbone: Backbone, image_size: int) -> None:
        super().__init__(config, backbone, image_size, nn.ReLU)

    def compare(self, projections: Tensor, progress: Progress) -> tuple[Tensor, dict[str, Tensor]]:
        """LeJEPA's loss, over the images of all processes."""
        every = of_all_ranks(projections)
        cost = sigreg(every, self.config.slices, progress.step)
        loss, parts = self.mixed(projections, every, self.config.weight, cost)
        return loss, parts | {"collapsed": cost.new_full((), collapsed(every.shape[1]))}

    def remark(self, parts: dict[str, float]) -> str:
        """How far the projections are from a normal distribution, between what it costs and what a collapse does."""
        return (
            f"The regulariser is {parts['regularizer']:.2f} (about 1.05: normally distributed; "
            f"{parts['collapsed']:.1f}: all images have one projection)."
        )


def sigreg(projections: Tensor, slices: int, step: int) -> Tensor:
    """SIGReg's cost [] of projections [V, N, P]: the Epps-Pulley statistic, mean over views and directions.

    It is about 1.05 for normal numbers, of any N, and 0.402 N where all projections are nothing.
    """
    along = projections @ directions(projections.shape[2], slices, step, projections)  # [V, N, slices]
    statistic: Tensor = _Statistic.apply(along)
    return statistic.mean() * projections.shape[1]


class _Statistic(torch.autograd.Function):
    """The weighted squared distance of characteristic functions, of numbers [V, N, M] over N: [V, M].

    The function at each knot is a power of the one at the first, so that each number has one sine and one cosine.
    """

    @staticmethod
    def forward(ctx: Any, numbers: Tensor) -> Tensor:
        """[V, N, M] to [V, M]."""
        first = torch.polar(torch.ones_like(numbers), SPACING * numbers)
        power, total = torch.ones_like(first), torch.zeros_like(numbers[:, 0])
        away = []  # of the function from a normal distribution's, [V, M] at each knot
        for knot, (weight, normal) in enumerate(_knots()):
            if knot > 0:
                power = power.mul_(first)
            away.append(power.mean(dim=1) - normal)
            total += weight * away[-1].abs().square()
        ctx.save_for_backward(first, *away)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """[V, M] to [V, N, M]; a polynomial in the conjugate of the first knot's value, from its highest term."""
        first, *away = ctx.saved_tensors
        back, terms = first.conj().resolve_conj(), list(enumerate(zip(_knots(), away, strict=True)))
        total = torch.zeros_like(first)
        for knot, ((weight, _), distance) in reversed(terms):
            scale = 2 * weight * knot * SPACING / first.shape[1]
            total = total.mul_(back).add_(scale * distance[:, None])
        return total.imag * gradient[:, None]


def _knots() -> list[tuple[float, float]]:
    """Weight in the integral, for both signs, and characteristic function of a normal distribution at each knot."""
    normals = [math.exp(-((knot * SPACING) ** 2) / 2) for knot in range(KNOTS)]
    ends = (0, KNOTS - 1)  # of trapezoids
    return [(normal * SPACING * (1 if knot in ends else 2), normal) for knot, normal in enumerate(normals)]


def collapsed(images: int) -> float:
    """What :func:`sigreg` is where all projections of N images are nothing.

    >>> round(collapsed(1), 3)
    0.402
    """
    return float(sigreg(torch.zeros(1, 1, 1, dtype=torch.float64), 1, 0)) * images
