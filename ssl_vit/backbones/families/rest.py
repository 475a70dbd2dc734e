"""ResT, an efficient transformer for visual recognition (arXiv:2105.13677).

A pyramid whose attention takes keys and values from a map that an overlapping depthwise convolution has reduced, mixes
the logits of the heads and normalises each head's attention map; a depthwise gate stands for positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from ssl_vit.backbones.layers import PreNormBlock, ReducedAttention, Size, init_linear, register_variants, rename_keys
from ssl_vit.backbones.pyramid import Pyramid, TokenStage, drop_path_rates


class Attention(ReducedAttention):
    """Attention over a map reduced `reduction` times, whose heads talk to one another."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        reduce = None
        if reduction > 1:
            conv = nn.Conv2d(dim, dim, reduction + 1, stride=reduction, padding=reduction // 2, groups=dim)
            reduce = nn.Sequential(conv, LayerNorm2d(dim, eps=1e-5))
        super().__init__(dim, heads, reduce)
        if heads > 1:
            self.transform_conv = nn.Conv2d(heads, heads, 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, heads, N, d] -> [B, heads, N, d].

        The order of operations is the authors': the norm divides by spreads so small that rounding shows in the output.
        """
        logits = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        if self.heads == 1:
            return torch.matmul(logits.softmax(dim=-1), v)
        precise = torch.promote_types(v.dtype, torch.float32)  # bfloat16 would be all rounding once divided
        attn = self.transform_conv(logits).softmax(dim=-1, dtype=precise)
        if attn.shape[-2:].numel() == 1:  # a map of one place has no spread to divide by
            return torch.zeros_like(v)
        return torch.matmul(F.instance_norm(attn).to(v.dtype), v)


class PixelAttention(nn.Module):
    """A map gated by its own depthwise convolution; tells places apart at any size."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pa_conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, D, H, W]."""
        x = x * self.pa_conv(x).sigmoid()
        return x


def downsample(in_chans: int, dim: int) -> nn.Sequential:
    """Build a strided convolution to half the side, a norm, positions."""
    return nn.Sequential(nn.Conv2d(in_chans, dim, 3, stride=2, padding=1), nn.BatchNorm2d(dim), PixelAttention(dim))


class ResT(Pyramid):
    """A stem of three convolutions and four stages.

    Args:
        depths, dims, heads, reductions: of each stage.
        img_size: taken for timm's sake; nothing in the family depends on it.
        head: `num_classes`, `global_pool`, `drop_rate` of :class:`Pyramid`.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int] = (64, 128, 256, 512),
        heads: Sequence[int] = (1, 2, 4, 8),
        reductions: Sequence[int] = (8, 4, 2, 1),
        img_size: int | Size = 224,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        **head: Any,
    ) -> None:
        stages = []
        for i, (dim, rates) in enumerate(zip(dims, drop_path_rates(drop_path_rate, depths), strict=True)):
            blocks = []
            for rate in rates:
                attn = Attention(dim, heads[i], reductions[i])
                blocks.append(PreNormBlock(dim, attn, Mlp(dim, 4 * dim), rate, eps=1e-5))
            stages.append(TokenStage(downsample(dims[i - 1], dim) if i else nn.Identity(), blocks))
        half = dims[0] // 2
        stem = nn.Sequential(
            *(nn.Conv2d(in_chans, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half), nn.ReLU()),
            *(nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half), nn.ReLU()),
            *(nn.Conv2d(half, dims[0], 3, stride=2, padding=1, bias=False), PixelAttention(dims[0])),
        )
        super().__init__(stem, stages, dims, norm=LayerNorm2d(dims[-1], eps=1e-5), in_chans=in_chans, **head)
        init_linear(self, nn.Conv2d)


def load_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint of the authors' code to our names."""
    return rename_keys(
        state_dict,
        (r"^stem\.(conv|norm)(\d)\.", lambda m: f"stem.{3 * int(m[2]) - 3 + (m[1] == 'norm')}."),
        (r"^stem\.pos\.", "stem.7."),
        (r"^patch_embed_(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.downsample."),
        (r"\.downsample\.conv\.", ".downsample.0."),
        (r"\.downsample\.norm\.", ".downsample.1."),
        (r"\.downsample\.pos\.", ".downsample.2."),
        (r"^stage(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
        (r"\.attn\.sr\.", ".attn.reduce.0."),
        (r"\.attn\.sr_norm\.", ".attn.reduce.1."),
        (r"^head\.", "head.fc."),
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "rest_lite": {"depths": (2, 2, 2, 2)},
    "rest_small": {"depths": (2, 2, 6, 2)},
    "rest_base": {"depths": (2, 2, 6, 2), "dims": (96, 192, 384, 768)},
    "rest_large": {"depths": (2, 2, 18, 2), "dims": (96, 192, 384, 768)},
}
register_variants(
    __name__,
    ResT,
    VARIANTS,
    kind="transformer",
    paper_ids="arXiv:2105.13677",
    first_conv="stem.0",
    classifier="head.fc",
)
