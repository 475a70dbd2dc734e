"""Heads that several methods share: DINO's projection onto prototypes, MLPs, a BatchNorm that spans all ranks."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class Prototypes(nn.Module):
    """Weight-normed linear layer: K prototypes of length ``weight_g``, directions ``weight_v`` (1602.07868).

    The row norms scale the logits, so that the normalised [K, D] matrix never exists in memory.
    Parameter names are those of the official DINO checkpoints.
    """

    def __init__(self, dim: int, count: int, fixed_length: bool = True) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(count, 1), requires_grad=not fixed_length)
        self.weight_v = nn.Parameter(torch.empty(count, dim))
        bound = dim**-0.5  # torch's default for a linear layer, which the official head keeps
        nn.init.uniform_(self.weight_v, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] to logits [N, K]."""
        length = self.weight_g.squeeze(1) / torch.linalg.vector_norm(self.weight_v, dim=1)
        logits: Tensor = F.linear(x, self.weight_v) * length
        return logits


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm over the batch of all ranks, on any device (torch's SyncBatchNorm needs a GPU)."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] to [N, D]."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        x32 = x.float()
        sums = torch.stack([torch.full_like(x32[0], x32.shape[0]), x32.sum(0), x32.square().sum(0)])
        count, total, squares = all_reduce(sums).unbind()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        mean = total / count
        var = (squares / count - mean.square()).clamp_min(0)
        with torch.no_grad():
            rate = self.momentum if self.momentum is not None else 0.1
            self.running_mean.lerp_(mean, rate)  # type: ignore[union-attr]  # a buffer, as track_running_stats is on
            self.running_var.lerp_(var * count / (count - 1), rate)  # type: ignore[union-attr]  # likewise
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]  # likewise
        out: Tensor = (x32 - mean) * torch.rsqrt(var + self.eps) * self.weight + self.bias
        return out.to(x.dtype)


def mlp(widths: list[int], batch_norm: bool, activation: type[nn.Module] = nn.GELU) -> nn.Sequential:
    """Linear layers of the given widths; normalisation and activation after each but the last."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(a, b))
        if i < len(widths) - 2:
            layers += ([GlobalBatchNorm1d(b)] if batch_norm else []) + [activation()]
    return nn.Sequential(*layers)


class DINOHead(nn.Module):
    """DINO's head (2104.14294): three-layer MLP, L2-normalised bottleneck, weight-normed prototypes."""

    def __init__(
        self,
        dim: int,
        out_dim: int = 65536,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        batch_norm: bool = False,
        norm_last_layer: bool = True,
    ) -> None:
        super().__init__()
        self.mlp = mlp([dim, hidden_dim, hidden_dim, bottleneck_dim], batch_norm)
        self.last_layer = Prototypes(bottleneck_dim, out_dim, fixed_length=norm_last_layer)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, D] to logits [N, out_dim]."""
        logits: Tensor = self.last_layer(F.normalize(self.mlp(x), dim=-1))
        return logits
