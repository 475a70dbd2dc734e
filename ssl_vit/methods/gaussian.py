"""VISReg and SIGReg: views that agree, and projections that are distributed like independent normal numbers.

Both compare projections with a normal distribution along random directions, by quantiles (VISReg, 2606.02572) or by
the characteristic function (SIGReg, of LeJEPA, 2511.08544).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.methods.heads import mlp
from ssl_vit.methods.joint import JointEmbedding, of_all_ranks, spread
from ssl_vit.methods.joint_config import MultiCropConfig
from ssl_vit.methods.method import Progress
from ssl_vit.methods.sigreg_config import Config as SIGRegConfig
from ssl_vit.methods.visreg_config import Config as VISRegConfig

EPSILON = 1e-4  # added to the deviations by which VISReg divides
KNOTS, END = 17, 3.0  # where LeJEPA compares characteristic functions: as many points of [0, END]


class Gaussian(JointEmbedding):
    """All views of an image come near the mean of its global ones; a regulariser keeps images apart."""

    config: MultiCropConfig

    def __init__(
        self, config: MultiCropConfig, backbone: Backbone, image_size: int, activation: type[nn.Module]
    ) -> None:
        widths = [backbone.info.dim, config.hidden_dim, config.hidden_dim, config.out_dim]
        super().__init__(config, backbone, image_size, mlp(widths, batch_norm=True, activation=activation))

    def mixed(self, own: Tensor, every: Tensor, weight: float, cost: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss [] of a regulariser's cost [] beside the distance of views."""
        invariance = invariance_loss(own)
        parts = {"invariance": invariance.detach(), "regularizer": cost.detach(), "spread": spread(every)}
        return (1 - weight) * invariance + weight * cost, parts


class VISReg(Gaussian):
    """The regulariser costs mean, deviation and shape of the projections apart, so that a collapse has a way out."""

    config: VISRegConfig

    def __init__(self, config: VISRegConfig, backbone: Backbone, image_size: int) -> None:
        super().__init__(config, backbone, image_size, nn.GELU)

    def compare(self, projections: Tensor, progress: Progress) -> tuple[Tensor, dict[str, Tensor]]:
        """Algorithm 1, over the images of all processes."""
        every = of_all_ranks(projections)
        return self.mixed(projections, every, self.config.weight, visreg(every, self.config.slices, progress.step))

    def remark(self, parts: dict[str, float]) -> str:
        """How far the projections are from being one and the same."""
        return f"Projections spread {parts['spread']:.2f} of 1 (0: all images have one projection)."


class SIGReg(Gaussian):
    """The regulariser compares the characteristic function of the projections with that of a normal distribution."""

    config: SIGRegConfig

    def __init__(self, config: SIGRegConfig, backbone: Backbone, image_size: int) -> None:
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


def invariance_loss(projections: Tensor) -> Tensor:
    """Mean squared distance of all views [V, B, P] to the mean of the two global ones, which come first."""
    return (projections - projections[:2].mean(dim=0)).square().mean()


def directions(dims: int, count: int, step: int, like: Tensor) -> Tensor:
    """Random unit vectors [dims, count] of this step, the same in every process."""
    drawn = torch.randn(dims, count, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return (drawn / torch.linalg.vector_norm(drawn, dim=0)).to(like)


def visreg(projections: Tensor, slices: int, step: int) -> Tensor:
    """VISReg's cost [] of projections [V, N, P]: of their means, of their deviations, and of their shape.

    The shape is the squared Wasserstein distance to a normal distribution, along each direction.
    """
    mean, deviation = projections.mean(dim=1, keepdim=True), projections.std(dim=1, correction=0, keepdim=True)
    scaled = (projections - mean) / (deviation.detach() + EPSILON)
    ordered = (scaled @ directions(projections.shape[2], slices, step, projections)).sort(dim=1).values
    images = projections.shape[1]
    places = torch.arange(1, images + 1, dtype=torch.float64, device=projections.device) / (images + 1)
    quantiles = (math.sqrt(2) * torch.erfinv(2 * places - 1)).to(projections)
    shape = (ordered - quantiles[:, None]).square().mean()
    return mean.square().mean() + (1 - deviation).square().mean() + shape


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
