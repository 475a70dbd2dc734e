"""SIGReg, LeJEPA's loss: views that agree; the characteristic function of projections is a normal distribution's."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.methods.gaussian import Gaussian, directions
from ssl_vit.methods.joint import of_all_ranks
from ssl_vit.methods.method import Progress
from ssl_vit.methods.sigreg_config import Config

KNOTS, END = 17, 3.0  # where characteristic functions are compared (LeJEPA): as many points of [0, END]


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
        return loss, parts | {"collapsed": cost.new_tensor(collapsed(every.shape[1]))}

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
    spacing = END / (KNOTS - 1)
    total = along.new_zeros(len(along), slices)
    for knot in range(KNOTS):
        at = knot * spacing
        normal = math.exp(-(at**2) / 2)  # of its characteristic function, and of the weight
        real, imaginary = (at * along).cos().mean(dim=1), (at * along).sin().mean(dim=1)
        width = spacing if knot in (0, KNOTS - 1) else 2 * spacing  # of a trapezoid, for both signs
        total = total + width * normal * ((real - normal).square() + imaginary.square())
    return total.mean() * projections.shape[1]


def collapsed(images: int) -> float:
    """What :func:`sigreg` is where all projections of N images are nothing.

    >>> round(collapsed(1), 3)
    0.402
    """
    return float(sigreg(torch.zeros(1, 1, 1, dtype=torch.float64), 1, 0)) * images
