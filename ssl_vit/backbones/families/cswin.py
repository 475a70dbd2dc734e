"""CSWin Transformer (arXiv 2107.00652): half of the heads attend along rows, half along columns.

Each half works in stripes, as wide as the stage says and as long as the map; a depthwise convolution over the
stripe's values (LePE) tells where a token is. The last stage attends over the whole map.

At other sizes than the built one the stripes stay as wide and are padded where they don't divide the map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from ssl_vit.backbones.layers import conv_norm, register_variants, rename_keys
from ssl_vit.backbones.pyramid import SwinLayout
from ssl_vit.backbones.windows import even_windows


class StripeAttention(nn.Module):
    """Attention inside stripes; a side of the stripe that is None is as long as the map."""

    def __init__(self, dim: int, heads: int, stripe: tuple[int | None, int | None]) -> None:
        super().__init__()
        self.heads, self.stripe = heads, stripe
        self.get_v = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, qkv: Tensor) -> Tensor:
        """[B, H, W, 3, D] -> [B, H, W, D]."""
        batch, height, width, _, dim = qkv.shape
        high, wide = even_windows((height, width), (self.stripe[0] or height, self.stripe[1] or width))
        qkv = F.pad(qkv, (0, 0, 0, 0, 0, -width % wide, 0, -height % high))
        rows, columns = qkv.shape[1] // high, qkv.shape[2] // wide
        qkv = qkv.view(batch, rows, high, columns, wide, 3, self.heads, -1).permute(5, 0, 1, 3, 6, 2, 4, 7)
        q, k, v = qkv.reshape(3, batch * rows * columns, self.heads, high * wide, -1)
        stripes = v.transpose(2, 3).reshape(-1, dim, high, wide)
        out = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(-1, dim, high, wide)
        out = out + self.get_v(stripes)
        out = out.view(batch, rows, columns, dim, high, wide).permute(0, 1, 4, 2, 5, 3)
        x: Tensor = out.reshape(batch, rows * high, columns * wide, dim)[:, :height, :width]
        return x


class Block(nn.Module):
    """Cross-shaped attention and an MLP, each with a skip; `stripe` None attends over the whole map."""

    def __init__(self, dim: int, heads: int, stripe: int | None, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        # without `stripe` the two halves would be the same, and there is one attention over all channels
        shapes = [(None, None)] if stripe is None else [(None, stripe), (stripe, None)]
        parts = len(shapes)
        self.attns = nn.ModuleList(StripeAttention(dim // parts, heads // parts, shape) for shape in shapes)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]."""
        halves = self.qkv(self.norm1(x)).unflatten(-1, (3, -1)).chunk(len(self.attns), dim=-1)
        crossed = torch.cat([attn(half) for attn, half in zip(self.attns, halves, strict=True)], dim=-1)
        x = x + self.drop_path(self.proj(crossed))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class CSWin(SwinLayout):
    """Swin's layout, with overlapping patches.

    Args:
        heads: of each stage.
        stripes: width of the stripes of all stages but the last, cells.
        layout: of :class:`SwinLayout`.
    """

    def __init__(self, heads: Sequence[int] = (2, 4, 8, 16), stripes: Sequence[int] = (1, 2, 7), **layout: Any) -> None:
        def block(stage: int, place: int, dim: int, drop_path: float) -> nn.Module:
            return Block(dim, heads[stage], (*stripes, None)[stage], drop_path)

        merge = partial(conv_norm, kernel=3, stride=2, padding=1)
        super().__init__(block, merge, partial(conv_norm, kernel=7, stride=4, padding=2), **layout)


def load_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint of microsoft/CSWin-Transformer to our names."""
    return rename_keys(
        weights,
        (r"^stage1_conv_embed\.0", "stem.0"),
        (r"^stage1_conv_embed\.2", "stem.1"),
        (r"^stage(\d)\.", lambda match: f"stages.{int(match[1]) - 1}.blocks."),
        (r"^merge(\d)\.conv", r"stages.\1.downsample.0"),
        (r"^merge(\d)\.norm", r"stages.\1.downsample.1"),
        (r"^head\.(weight|bias)", r"head.fc.\1"),
    )


_TINY = {"embed_dim": 64, "depths": (1, 2, 21, 1), "heads": (2, 4, 8, 16)}
_SMALL = {"embed_dim": 64, "depths": (2, 4, 32, 2), "heads": (2, 4, 8, 16)}
_BASE = {"embed_dim": 96, "depths": (2, 4, 32, 2), "heads": (4, 8, 16, 32)}
_LARGE = {"embed_dim": 144, "depths": (2, 4, 32, 2), "heads": (6, 12, 24, 24)}

VARIANTS = {
    "cswin_tiny_224": _TINY,
    "cswin_small_224": _SMALL,
    "cswin_base_224": _BASE,
    "cswin_large_224": _LARGE,
    "cswin_base_384": {**_BASE, "img_size": 384, "stripes": (1, 2, 12)},
    "cswin_large_384": {**_LARGE, "img_size": 384, "stripes": (1, 2, 12)},
}

register_variants(
    __name__,
    CSWin,
    VARIANTS,
    kind="transformer",
    paper_ids="arXiv:2107.00652",
    first_conv="stem.0",
    classifier="head.fc",
)
