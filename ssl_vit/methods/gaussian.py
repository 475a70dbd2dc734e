"""What VISReg and SIGReg share: views that agree, and projections that are distributed like normal numbers.

Both compare projections with a normal distribution along random directions, by quantiles (VISReg, 2606.02572) or by
the characteristic function (SIGReg, of LeJEPA, 2511.08544).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.methods.heads import mlp
from ssl_vit.methods.joint import JointEmbedding, spread
from ssl_vit.methods.joint_settings import MultiCropConfig


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


def invariance_loss(projections: Tensor) -> Tensor:
    """Mean squared distance of all views [V, B, P] to the mean of the two global ones, which come first."""
    return (projections - projections[:2].mean(dim=0)).square().mean()


def directions(dims: int, count: int, step: int, like: Tensor) -> Tensor:
    """Random unit vectors [dims, count] of this step, the same in every process."""
    drawn = torch.randn(dims, count, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    unit: Tensor = (drawn / torch.linalg.vector_norm(drawn, dim=0)).to(like, non_blocking=True)
    return unit
