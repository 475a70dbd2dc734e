"""P2T, the Pyramid Pooling Transformer (arXiv:2106.12011).

Keys and values are a pyramid: the map averaged at four ratios, each with a depthwise convolution that the blocks of a
stage share. A short sequence thus holds several scales at once; an inverted bottleneck stands for the MLP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.backbones.layers import (
    PreNormBlock,
    Size,
    conv_norm,
    init_linear,
    merge_heads,
    register_variants,
    rename_keys,
    split_heads,
    to_map,
    to_tokens,
)
from ssl_vit.backbones.pyramid import Pyramid, TokenStage, drop_path_rates

RATIOS = ((12, 16, 20, 24), (6, 8, 10, 12), (3, 4, 5, 6), (1, 2, 3, 4))  # of each stage: cells of the map a pooled one


def depthwise(dim: int) -> nn.Conv2d:
    """Build a 3 x 3 convolution of each channel by itself."""
    return nn.Conv2d(dim, dim, 3, padding=1, groups=dim)


class PoolingAttention(nn.Module):
    """Attention to the map averaged at several ratios."""

    def __init__(self, dim: int, heads: int, ratios: Sequence[int]) -> None:
        super().__init__()
        self.heads, self.ratios = heads, ratios
        self.q = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def pool(self, x: Tensor, convs: nn.ModuleList) -> Tensor:
        """[B, D, H, W] -> [B, M, D]: every ratio's average, plus its convolution."""
        levels = []
        for ratio, conv in zip(self.ratios, convs, strict=True):
            height, width = (max(1, round(side / ratio)) for side in x.shape[-2:])
            level = F.adaptive_avg_pool2d(x, (height, width))
            levels.append(to_tokens(level + conv(level)))
        return torch.cat(levels, dim=1)

    def forward(self, x: Tensor, size: Size, convs: nn.ModuleList) -> Tensor:
        """[B, H*W, D] -> [B, H*W, D]."""
        pooled = self.norm(self.pool(to_map(x, size), convs))
        k, v = (split_heads(t, self.heads) for t in self.kv(pooled).chunk(2, dim=-1))
        q = split_heads(self.q(x), self.heads)
        x = self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))
        return x


class InvertedBottleneck(nn.Sequential):
    """1 x 1 up, depthwise 3 x 3, 1 x 1 down, over maps."""

    def __init__(self, dim: int, hidden: int) -> None:
        up, down = nn.Conv2d(dim, hidden, 1), nn.Conv2d(hidden, dim, 1)
        super().__init__(up, nn.Hardswish(), depthwise(hidden), nn.Hardswish(), down)


class Block(PreNormBlock):
    """Pooling attention, then the bottleneck."""

    def forward(self, x: Tensor, size: Size, convs: nn.ModuleList) -> Tensor:  # type: ignore[override]  # of P2TStage
        """[B, H*W, D] -> [B, H*W, D]."""
        x = x + self.drop_path(self.attn(self.norm1(x), size, convs))
        x = x + self.drop_path(to_tokens(self.mlp(to_map(self.norm2(x), size))))
        return x


class P2TStage(TokenStage):
    """A token stage whose blocks share a convolution for each ratio."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], dim: int, ratios: Sequence[int]) -> None:
        super().__init__(downsample, blocks)
        self.convs = nn.ModuleList(depthwise(dim) for _ in ratios)

    def shared(self, size: Size) -> tuple[nn.ModuleList]:
        """The convolutions."""
        return (self.convs,)


class P2T(Pyramid):
    """Overlapping patch embeddings and four stages; the head takes the mean of the last map, which has no norm.

    Args:
        depths, dims, heads, mlp_ratios: of each stage.
        img_size: taken for timm's sake; nothing in the family depends on it.
        head: `num_classes`, `global_pool`, `drop_rate` of :class:`Pyramid`.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int] = (64, 128, 320, 512),
        heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[int] = (8, 8, 4, 4),
        img_size: int | Size = 224,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        **head: Any,
    ) -> None:
        stages = []
        for i, (dim, rates) in enumerate(zip(dims, drop_path_rates(drop_path_rate, depths), strict=True)):
            blocks = []
            for rate in rates:
                attn, mlp = PoolingAttention(dim, heads[i], RATIOS[i]), InvertedBottleneck(dim, mlp_ratios[i] * dim)
                blocks.append(Block(dim, attn, mlp, rate, eps=1e-6))
            merge = conv_norm(dims[i - 1], dim, 3, 2, 1) if i else nn.Identity()
            stages.append(P2TStage(merge, blocks, dim, RATIOS[i]))
        stem = conv_norm(in_chans, dims[0], 7, 4, 3)
        super().__init__(stem, stages, dims, in_chans=in_chans, **head)
        init_linear(self)


def load_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint of the authors' code to our names."""
    return rename_keys(
        state_dict,
        (r"^patch_embed1\.", "stem."),
        (r"^patch_embed(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.downsample."),
        (r"^(stem|stages\.\d\.downsample)\.proj\.", r"\1.0."),
        (r"^(stem|stages\.\d\.downsample)\.norm\.", r"\1.1."),
        (r"^d_convs(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.convs."),
        (r"^block(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
        (r"\.attn\.(q|kv)\.0\.", r".attn.\1."),
        (r"\.mlp\.fc1\.", ".mlp.0."),
        (r"\.mlp\.conv\.", ".mlp.2."),
        (r"\.mlp\.fc2\.", ".mlp.4."),
        (r"^head\.", "head.fc."),
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "p2t_tiny": {"depths": (2, 2, 6, 3), "dims": (48, 96, 240, 384)},
    "p2t_small": {"depths": (2, 2, 9, 3)},
    "p2t_base": {"depths": (3, 4, 18, 3)},
    "p2t_medium": {"depths": (3, 4, 15, 3), "dims": (64, 128, 384, 512), "heads": (1, 2, 6, 8)},
    "p2t_large": {"depths": (3, 8, 27, 3), "dims": (64, 128, 320, 640)},
}
register_variants(
    __name__, P2T, VARIANTS, kind="transformer", paper_ids="arXiv:2106.12011", first_conv="stem.0", classifier="head.fc"
)
