"""VISReg: views that agree; mean, deviation and shape of the projections are held to a normal distribution's."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.device import widest
from ssl_vit.methods.gaussian import Gaussian, directions
from ssl_vit.methods.joint import of_all_ranks
from ssl_vit.methods.method import Progress
from ssl_vit.methods.visreg_config import Config

EPSILON = 1e-4  # added to the deviations by which projections are divided


class VISReg(Gaussian):
    """The regulariser costs mean, deviation and shape of the projections apart, so that a collapse has a way out."""

    config: Config

    def __init__(self, config: Config, backbone: Backbone, image_size: int) -> None:
        super().__init__(config, backbone, image_size, nn.GELU)

    def compare(self, projections: Tensor, progress: Progress) -> tuple[Tensor, dict[str, Tensor]]:
        """Algorithm 1, over the images of all processes."""
        every = of_all_ranks(projections)
        return self.mixed(projections, every, self.config.weight, visreg(every, self.config.slices, progress.step))

    def remark(self, parts: dict[str, float]) -> str:
        """How far the projections are from being one and the same."""
        return f"Projections spread {parts['spread']:.2f} of 1 (0: all images have one projection)."


def visreg(projections: Tensor, slices: int, step: int) -> Tensor:
    """VISReg's cost [] of projections [V, N, P]: of their means, of their deviations, and of their shape.

    The shape is the squared Wasserstein distance to a normal distribution, along each direction.
    """
    mean, deviation = projections.mean(dim=1, keepdim=True), projections.std(dim=1, correction=0, keepdim=True)
    scaled = (projections - mean) / (deviation.detach() + EPSILON)
    ordered = (scaled @ directions(projections.shape[2], slices, step, projections)).sort(dim=1).values
    images = projections.shape[1]
    places = torch.arange(1, images + 1, dtype=widest(projections.device), device=projections.device) / (images + 1)
    quantiles = (math.sqrt(2) * torch.erfinv(2 * places - 1)).to(projections)
    shape = (ordered - quantiles[:, None]).square().mean()
    return mean.square().mean() + (1 - deviation).square().mean() + shape
