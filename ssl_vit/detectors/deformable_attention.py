"""Queries attend to a few sampled points of several maps (Deformable DETR, arXiv 2010.04159), with nothing compiled."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Sizes = list[tuple[int, int]]  # (height, width) of each level, cells


def sample(value: Tensor, sizes: Sizes, points: Tensor, weights: Tensor) -> Tensor:
    """Sum bilinear samples of maps, each times its weight.

    value: [B, N, heads, d], the cells of all levels one after the other; points: [B, Q, heads, L, P, 2] (x, y), where
    0 and 1 are the edges of the map; weights: [B, Q, heads, L, P]. Outside of a map there is zero. -> [B, Q, heads * d]
    """
    b, _, heads, d = value.shape
    queries = points.shape[1]
    total = value.new_zeros(b * heads, d, queries)
    for level, (cells, (height, width)) in enumerate(
        zip(torch.split(value, [h * w for h, w in sizes], dim=1), sizes, strict=True)
    ):
        map_ = cells.permute(0, 2, 3, 1).reshape(b * heads, d, height, width)
        grid = 2 * points[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        seen = F.grid_sample(map_, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        share = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)
        total = total + torch.einsum("ndqp,nqp->ndq", seen, share)
    return total.view(b, heads * d, queries).mT


class DeformableAttention(nn.Module):
    """Each query looks at P points of each of L levels, around its reference point."""

    def __init__(self, dim: int, levels: int, heads: int, points: int) -> None:
        super().__init__()
        self.levels, self.heads, self.points = levels, heads, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset()

    def reset(self) -> None:
        """Begin officially: each head looks into a direction of its own, each point one cell further."""
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        reach = torch.arange(1, self.points + 1)[:, None]
        offsets = (direction[:, None, None] * reach).expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, reference: Tensor, memory: Tensor, sizes: Sizes, padding: Tensor) -> Tensor:
        """Mix what each query sees into [B, Q, D].

        query: [B, Q, D]; reference: [B, Q, L, 2] in [0, 1]; memory: [B, N, D]; padding: bool [B, N].
        """
        points, weights = self.look(query, reference, sizes)
        value = self.value_proj(memory).masked_fill(padding[..., None], 0.0)
        seen: Tensor = self.output_proj(sample(value.unflatten(-1, (self.heads, -1)), sizes, points, weights))
        return seen

    def look(self, query: Tensor, reference: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
        """Return where it looks, [B, Q, heads, L, P, 2] in [0, 1], and what each point counts, [B, Q, heads, L, P]."""
        shape = (self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*shape, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.heads, -1)).softmax(-1)
        cells = torch.tensor([(w, h) for h, w in sizes], device=query.device, dtype=query.dtype)
        points = reference[:, :, None, :, None] + offsets / cells[:, None]
        return points, weights.unflatten(-1, shape[1:])
