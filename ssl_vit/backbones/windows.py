"""Windows of maps, and attention in them as Swin has it (arXiv 2103.14030)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from ssl_vit.backbones.layers import Size, attend, merge_heads, pad_to_multiple


def even_windows(size: Size, most: Size) -> Size:
    """Return the window, no larger than `most`, that tiles a map of `size` with the least padding.

    >>> even_windows((56, 56), (7, 7)), even_windows((12, 3), (7, 7)), even_windows((25, 33), (7, 7))
    ((7, 7), (6, 3), (7, 7))
    """
    height, width = (math.ceil(side / math.ceil(side / limit)) for side, limit in zip(size, most, strict=True))
    return height, width


class RelativePositionBias(nn.Module):
    """A bias is learned for each head and each offset between two tokens of a window (Swin, arXiv 2103.14030)."""

    index: Tensor

    def __init__(self, window: Size, heads: int) -> None:
        super().__init__()
        height, width = window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * height - 1) * (2 * width - 1), heads))
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        rows, columns = (torch.arange(side)[:, None] - torch.arange(side) + side - 1 for side in window)
        index = rows[:, None, :, None] * (2 * width - 1) + columns[None, :, None, :]  # [H, W, H, W]
        self.register_buffer("index", index, persistent=False)

    def forward(self, window: Size) -> Tensor:
        """Return [1, heads, N, N] for the N tokens of a window no larger than the one it was built for."""
        height, width = window
        index = self.index[:height, :width, :height, :width].reshape(height * width, height * width)
        return self.relative_position_bias_table[index].permute(2, 0, 1)[None]


def to_windows(x: Tensor, window: Size) -> Tensor:
    """Cut maps [B, H, W, D] into [B * windows, tokens, D]; zeros fill up where windows don't tile the map."""
    batch, height, width, dim = x.shape
    high, wide = window
    x = F.pad(x, (0, 0, 0, -width % wide, 0, -height % high))
    x = x.view(batch, x.shape[1] // high, high, x.shape[2] // wide, wide, dim)
    return x.transpose(2, 3).reshape(-1, high * wide, dim)


def from_windows(x: Tensor, window: Size, size: Size) -> Tensor:
    """Undo :func:`to_windows` for a map of `size`: [B * windows, tokens, D] -> [B, H, W, D]."""
    (high, wide), (height, width) = window, size
    rows, columns = math.ceil(height / high), math.ceil(width / wide)
    x = x.view(-1, rows, columns, high, wide, x.shape[-1]).transpose(2, 3)
    return x.reshape(-1, rows * high, columns * wide, x.shape[-1])[:, :height, :width]


class WindowAttention(nn.Module):
    """Tokens attend inside windows with relative positions (Swin, arXiv 2103.14030), not shifted; maps [B, H, W, D]."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, (window, window)
        self.position = RelativePositionBias(self.window, heads)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, D] to [B, H, W, D]."""
        size = (x.shape[1], x.shape[2])
        window = even_windows(size, self.window)
        qkv = to_windows(self.qkv(x), window)
        q, k, v = qkv.view(*qkv.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = attend(q, k, v, self.position(window))
        x = self.proj(from_windows(merge_heads(out), window, size))
        return x


class MapBlock(nn.Module):
    """The block gives x + attn(norm(x)), then x + mlp(norm(x)), over maps [B, H, W, D]; `attn` is what mixes tokens."""

    def __init__(self, dim: int, attn: nn.Module, drop_path: float, mlp_ratio: float = 4) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, D] to [B, H, W, D]."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class PatchMerging(nn.Module):
    """Each 2 x 2 cells become one: normed together, then a linear layer (Swin, arXiv 2103.14030)."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, D, H / 2, W / 2]."""
        x = pad_to_multiple(x, 2)
        batch, dim, height, width = x.shape
        x = x.reshape(batch, dim, height // 2, 2, width // 2, 2).permute(0, 2, 4, 5, 3, 1).flatten(3)
        x = self.reduction(self.norm(x))
        return x.permute(0, 3, 1, 2)
