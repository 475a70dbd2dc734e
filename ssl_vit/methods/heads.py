"""Heads that several methods share: DINO's projection onto prototypes, MLPs, a BatchNorm that spans all ranks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from ssl_vit.methods.targets import exact

CELLS = 2**24  # logits that exist at a time: 64 MiB in float32
TILE = 4096  # prototypes that are read from memory once for all that is done with them, by a CPU


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
        """[N, D] to logits [N, K]; without gradients in at least float32, whatever they are multiplied in."""
        if not torch.is_grad_enabled():
            return tiled_logits(x.to(working_type(x)), self.weight_v, exact(self.lengths()))
        logits: Tensor = F.linear(x, self.weight_v) * self.lengths()
        return logits

    def lengths(self) -> Tensor:
        """What the rows of ``weight_v`` are multiplied with, [K]."""
        lengths: Tensor = self.weight_g.squeeze(1) / torch.linalg.vector_norm(self.weight_v, dim=1)
        return lengths


def working_type(x: Tensor) -> torch.dtype:
    """What matrix products with ``x`` are made in here: autocast's type, or its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def tiles(prototypes: Tensor) -> Iterator[slice]:
    """The rows of [K, D] in parts that a CPU's cache holds with what is made of them; for a GPU all at once."""
    step = TILE if prototypes.device.type == "cpu" else len(prototypes)
    for start in range(0, len(prototypes), step):
        yield slice(start, start + step)


def tiled_logits(rows: Tensor, directions: Tensor, scale: Tensor) -> Tensor:
    """(rows · directions) scale, of [N, D], [K, D] and [K], in the type of the rows; [N, K] in that of the scale."""
    logits = torch.empty(*rows.shape[:-1], len(directions), dtype=scale.dtype, device=rows.device)
    with torch.autocast(rows.device.type, enabled=False):
        for tile in tiles(directions):
            torch.mul(rows @ directions[tile].to(rows.dtype).T, scale[tile], out=logits[..., tile])
    return logits


def through_norm(gradient: Tensor, directions: Tensor, norms: Tensor, scale: Tensor) -> Tensor:
    """The gradient [k, D] by unit directions times ``scale`` becomes, in place, that by directions of length ``norms``.

    Returns its part along the directions, [k]: over the norms, the gradient by ``scale`` times the norms.
    """
    along = (gradient * directions).sum(1)
    gradient.addcmul_(directions, (along / norms.square())[:, None], value=-1).mul_(scale[:, None])
    return along


class _SumOverRanks(torch.autograd.Function):
    """A tensor added over all processes; its gradient is too, as each has a loss that depends on the sum."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        """Any shape to the same."""
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        """Likewise."""
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm over the batch of all ranks, on any device (torch's SyncBatchNorm needs a GPU)."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] to [N, D]."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        wide = x.double()  # a variance far below the squared mean would be lost in float32
        sums = torch.stack([torch.full_like(wide[0], len(wide)), wide.sum(0), wide.square().sum(0)])
        count, total, squares = _SumOverRanks.apply(sums).unbind()
        mean = total / count
        var = (squares / count - mean.square()).clamp_min(0)
        with torch.no_grad():
            rate = self.momentum if self.momentum is not None else 0.1
            unbiased = var * count / (count - 1)
            for kept, now in ((self.running_mean, mean), (self.running_var, unbiased)):
                kept.lerp_(now.to(kept.dtype), rate)  # type: ignore[union-attr]  # buffers, as track_running_stats is on
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]  # likewise
        out: Tensor = (wide - mean) * torch.rsqrt(var + self.eps)
        if self.affine:
            out = out * self.weight + self.bias
        return out.to(x.dtype)


def mlp(
    widths: list[int],
    batch_norm: bool,
    activation: type[nn.Module] = nn.GELU,
    *,
    bias: bool = True,
    norm_output: bool = False,
) -> nn.Sequential:
    """Linear layers of the given widths; normalisation and activation after each but the last.

    norm_output: batch norm, without weight and bias, after the last too.
    """
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(a, b, bias=bias))
        if i < len(widths) - 2:
            layers += ([GlobalBatchNorm1d(b)] if batch_norm else []) + [activation()]
    if norm_output:
        layers.append(GlobalBatchNorm1d(widths[-1], affine=False))
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
        logits: Tensor = self.last_layer(self.bottleneck(x))
        return logits

    def bottleneck(self, x: Tensor) -> Tensor:
        """Features [N, D] to vectors of unit length [N, bottleneck_dim], which the last layer compares."""
        return F.normalize(self.mlp(x), dim=-1)
