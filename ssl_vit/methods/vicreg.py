"""VICReg: variance, invariance, covariance (2105.04906)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.methods.heads import mlp
from ssl_vit.methods.joint import JointEmbedding, of_all_ranks, spread
from ssl_vit.methods.method import Progress
from ssl_vit.methods.vicreg_config import Config

EPSILON = 1e-4  # added to variances before their root (algorithm 1)


class VICReg(JointEmbedding):
    """Both views have one projection, whose dimensions vary over images and are not correlated."""

    config: Config

    def __init__(self, config: Config, backbone: Backbone, image_size: int) -> None:
        widths = [backbone.info.dim, config.hidden_dim, config.hidden_dim, config.out_dim]
        super().__init__(config, backbone, image_size, mlp(widths, batch_norm=True, activation=nn.ReLU))

    def project(self, features: list[Tensor]) -> Tensor:
        """The views one after the other, so that batch norm sees one kind of view at a time, as in the paper."""
        return torch.cat([self.student.projector(view) for view in features])

    def compare(self, projections: Tensor, progress: Progress) -> tuple[Tensor, dict[str, Tensor]]:
        """Equation 6; variance and covariance are of the images of all processes."""
        config, every = self.config, of_all_ranks(projections)
        invariance = (projections[0] - projections[1]).square().mean()
        variance, covariance = variance_loss(every), covariance_loss(every)
        loss = config.invariance * invariance + config.variance * variance + config.covariance * covariance
        return loss, {
            "invariance": invariance.detach(),
            "variance": variance.detach(),
            "covariance": covariance.detach(),
            "spread": spread(every),
        }

    def remark(self, parts: dict[str, float]) -> str:
        """How far the projections are from being one and the same."""
        return f"Projections spread {parts['spread']:.2f} of 1 (0: all images have one projection)."


def variance_loss(projections: Tensor) -> Tensor:
    """Equation 1, mean over views [V, N, P]: by how much the deviation of a dimension over images is below 1."""
    deviation = (projections.var(dim=1) + EPSILON).sqrt()
    return (1 - deviation).relu().mean()


def covariance_loss(projections: Tensor) -> Tensor:
    """Equation 4, summed over views [V, N, P]: squares of the covariances of two dimensions, over P."""
    images, dims = projections.shape[1:]
    centred = projections - projections.mean(dim=1, keepdim=True)
    covariances = centred.transpose(1, 2) @ centred / (images - 1)  # [V, P, P]
    own = covariances.diagonal(dim1=1, dim2=2)
    return (covariances.square().sum() - own.square().sum()) / dims
