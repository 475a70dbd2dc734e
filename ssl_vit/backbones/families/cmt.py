"""CMT, convolutional neural networks meet vision transformers (arXiv:2107.06263).

Every block first adds a depthwise convolution (local perception), then attends to keys and values reduced by a
strided depthwise convolution, with a learned bias for each pair of places; an inverted residual stands for the MLP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.helpers import to_2tuple
from torch import Tensor, nn

from ssl_vit.backbones.layers import (
    PatchEmbed,
    Size,
    attend,
    init_linear,
    merge_heads,
    pad_to_multiple,
    register_variants,
    rename_keys,
    split_heads,
    to_map,
    to_tokens,
)
from ssl_vit.backbones.pyramid import Pyramid, TokenStage, drop_path_rates


class InvertedResidual(nn.Module):
    """1 x 1 up, depthwise 3 x 3 with a shortcut, 1 x 1 down."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.GELU(), nn.BatchNorm2d(hidden))
        self.proj = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.proj_bn = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Sequential(nn.Conv2d(hidden, dim, 1), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, D, H, W]."""
        x = self.conv1(x)
        x = self.conv2(self.proj_bn(F.gelu(x + self.proj(x))))
        return x


class Attention(nn.Module):
    """Attention with a learned bias; keys and values come from a map reduced by a strided depthwise convolution."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        if reduction > 1:
            conv = nn.Conv2d(dim, dim, reduction, stride=reduction, groups=dim)
            self.sr = nn.Sequential(conv, nn.BatchNorm2d(dim))

    def forward(self, x: Tensor, size: Size, bias: Tensor) -> Tensor:
        """Tokens [B, N, D] and bias [1, heads, N, M] -> [B, N, D]."""
        q = split_heads(self.q(x), self.heads)
        if self.reduction > 1:
            x = to_tokens(self.sr(pad_to_multiple(to_map(x, size), self.reduction)))
        k, v = split_heads(self.k(x), self.heads), split_heads(self.v(x), self.heads)
        x = self.proj(merge_heads(attend(q, k, v, bias)))
        return x


class Block(nn.Module):
    """Local perception, attention, inverted residual."""

    def __init__(self, dim: int, heads: int, reduction: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, reduction)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = InvertedResidual(dim, hidden)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: Size, bias: Tensor) -> Tensor:
        """[B, H*W, D] -> [B, H*W, D]."""
        x = x + to_tokens(self.proj(to_map(x, size)))
        x = x + self.drop_path(self.attn(self.norm1(x), size, bias))
        x = x + self.drop_path(to_tokens(self.mlp(to_map(self.norm2(x), size))))
        return x


def ceil_div(size: Size, divisor: int) -> Size:
    """Count the cells left of `size` when squares of `divisor` become one."""
    return -(-size[0] // divisor), -(-size[1] // divisor)


class CMTStage(TokenStage):
    """A token stage whose blocks share one bias between each place and each reduced place, [heads, N, M]."""

    def __init__(
        self, downsample: nn.Module, blocks: Sequence[nn.Module], heads: int, reduction: int, built: Size
    ) -> None:
        super().__init__(downsample, blocks)
        self.reduction, self.built = reduction, built
        rows, columns = ceil_div(built, reduction)
        self.relative_pos = nn.Parameter(torch.randn(heads, built[0] * built[1], rows * columns))

    def shared(self, size: Size) -> tuple[Tensor]:
        """The bias for a map of `size`, [1, heads, N, M]: bicubic over keys, then over queries, as the paper does."""
        bias: Tensor = self.relative_pos
        if size != self.built:
            heads, queries, _ = bias.shape
            keys = bias.reshape(1, heads * queries, *ceil_div(self.built, self.reduction))
            keys = F.interpolate(keys, size=ceil_div(size, self.reduction), mode="bicubic")
            by_key = keys.reshape(heads, queries, -1).transpose(1, 2)  # [heads, M, N as built]
            places = F.interpolate(by_key.reshape(heads, -1, *self.built), size=size, mode="bicubic")
            bias = places.flatten(2).transpose(1, 2)
        return (bias[None],)


class CMT(Pyramid):
    """A convolution stem, four stages, and a head on a widened last map.

    Args:
        depths, dims: of each stage.
        stem: channels of the stem.
        mlp_ratio: hidden channels of the inverted residuals, times those of the stage.
        img_size: that the biases are made for, pixels; they're resized for any other.
        head: `num_classes`, `global_pool` of :class:`Pyramid`.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        stem: int,
        mlp_ratio: float = 4.0,
        heads: Sequence[int] = (1, 2, 4, 8),
        reductions: Sequence[int] = (8, 4, 2, 1),
        img_size: int | Size = 224,
        in_chans: int = 3,
        drop_rate: float = 0.1,
        drop_path_rate: float = 0.0,
        **head: Any,
    ) -> None:
        stages = []
        for i, (dim, rates) in enumerate(zip(dims, drop_path_rates(drop_path_rate, depths), strict=True)):
            hidden = int(dim * mlp_ratio)
            blocks = [Block(dim, heads[i], reductions[i], hidden, rate) for rate in rates]
            downsample = PatchEmbed(dims[i - 1] if i else stem, dim, 2)
            stages.append(CMTStage(downsample, blocks, heads[i], reductions[i], ceil_div(to_2tuple(img_size), 4 << i)))
        convs: list[nn.Module] = []
        for i in range(3):
            conv = nn.Conv2d(stem if i else in_chans, stem, 3, stride=1 if i else 2, padding=1)
            convs += [conv, nn.GELU(), nn.BatchNorm2d(stem)]
        stem_layers = nn.Sequential(*convs)
        super().__init__(stem_layers, stages, dims, head_width=1280, in_chans=in_chans, drop_rate=drop_rate, **head)
        self.widen: nn.Module = nn.Sequential(nn.Conv2d(dims[-1], 1280, 1), nn.BatchNorm2d(1280), nn.SiLU())
        init_linear(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # every convolution here has one

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As :meth:`Pyramid.prune_intermediate_layers`; the widening goes with the head."""
        pruned = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head or len(self.stages) < len(self.feature_info):
            self.widen = nn.Identity()
            self.head_hidden_size = self.num_features
        return pruned

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, D, H, W] -> [B, num_classes], or [B, 1280] with `pre_logits`."""
        return super().forward_head(self.widen(x), pre_logits)


def load_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint of the authors' code to our names."""
    return rename_keys(
        state_dict,
        (r"^stem_conv(\d)\.", lambda m: f"stem.{3 * int(m[1]) - 3}."),
        (r"^stem_norm(\d)\.", lambda m: f"stem.{3 * int(m[1]) - 1}."),
        (r"^patch_embed_(\w)\.", lambda m: f"stages.{'abcd'.index(m[1])}.downsample."),
        (r"^relative_pos_(\w)$", lambda m: f"stages.{'abcd'.index(m[1])}.relative_pos"),
        (r"^blocks_(\w)\.", lambda m: f"stages.{'abcd'.index(m[1])}.blocks."),
        (r"^_fc\.", "widen.0."),
        (r"^_bn\.", "widen.1."),
        (r"^head\.", "head.fc."),
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "cmt_ti": {
        "depths": (2, 2, 10, 2), "dims": (46, 92, 184, 368), "stem": 16, "mlp_ratio": 3.6, "img_size": 160,
    },
    "cmt_xs": {
        "depths": (3, 3, 12, 3), "dims": (52, 104, 208, 416), "stem": 16, "mlp_ratio": 3.77, "img_size": 192,
    },
    "cmt_s": {"depths": (3, 3, 16, 3), "dims": (64, 128, 256, 512), "stem": 32},
    "cmt_b": {
        "depths": (4, 4, 20, 4), "dims": (76, 152, 304, 608), "stem": 38, "img_size": 256, "drop_rate": 0.3,
    },
}  # fmt: skip
register_variants(
    __name__, CMT, VARIANTS, kind="hybrid", paper_ids="arXiv:2107.06263", first_conv="stem.0", classifier="head.fc"
)
