"""LG-Transformer (arXiv 2107.04735): a Swin Transformer whose every layer also attends on coarser maps.

Beside (shifted) window attention on the map, parallel paths attend on the map pooled by 2, 4, … with the same window of
7 x 7 tokens, down to a map that is a single window at 224 pixels: 4 paths in the first stage, then 3, 2 and 1. What
they give is enlarged bilinearly and added up.

No official code can be read. Left open and chosen here: every path has attention weights of its own, the MLP is shared,
paths share relative positions, and only the full path has biases. That gives 32.6 M and 61.0 M parameters, the numbers
reported for tiny and small. Pooling is by averages; every path shifts its windows in every second block.

At other sizes than the built one windows shrink until they tile each map; what is left to pad is masked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.backbones.layers import attend, merge_heads, register_variants
from ssl_vit.backbones.pyramid import SwinLayout
from ssl_vit.backbones.windows import MapBlock, RelativePositionBias, even_windows, from_windows, to_windows

WINDOW = (7, 7)  # cells
HIDDEN = -3e4  # a logit that softmax makes 0, within the range of half precision


class PathAttention(nn.Module):
    """Attention in windows, which start half a window before the map when they are shifted.

    Windows that reach beyond the map give the same as Swin's cyclic shift with its masks.
    """

    def __init__(self, dim: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim, bias=bias)

    def forward(self, x: Tensor, position: nn.Module, shifted: bool) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]."""
        size = (x.shape[1], x.shape[2])
        window = even_windows(size, WINDOW)
        top, left = (
            side - side // 2 if shifted and whole > side else 0 for side, whole in zip(window, size, strict=True)
        )
        full = (size[0] + top, size[1] + left)
        bias: Tensor = position(window)
        if full[0] % window[0] or full[1] % window[1] or (top, left) != (0, 0):
            inside = to_windows(F.pad(x.new_ones(1, *size, 1), (0, 0, left, 0, top, 0)), window)
            bias = (bias + HIDDEN * (1 - inside.transpose(1, 2)[:, None])).repeat(x.shape[0], 1, 1, 1)
        qkv = to_windows(F.pad(self.qkv(x), (0, 0, left, 0, top, 0)), window)
        q, k, v = qkv.view(*qkv.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = merge_heads(attend(q, k, v, bias))
        x = self.proj(from_windows(out, window, full)[:, top:, left:])
        return x


class LocalToGlobal(nn.Module):
    """Window attention on the map and on `paths` - 1 coarser ones, each half as fine as the one before, added up."""

    def __init__(self, dim: int, heads: int, paths: int, shifted: bool) -> None:
        super().__init__()
        self.shifted = shifted
        self.position = RelativePositionBias(WINDOW, heads)
        self.paths = nn.ModuleList(PathAttention(dim, heads, bias=i == 0) for i in range(paths))

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]."""
        total: Tensor = self.paths[0](x, self.position, self.shifted)
        for i, path in enumerate(self.paths[1:], start=1):
            pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), 2**i, ceil_mode=True).permute(0, 2, 3, 1)
            coarse = path(pooled, self.position, self.shifted).permute(0, 3, 1, 2)
            total = total + F.interpolate(coarse, size=x.shape[1:3], mode="bilinear").permute(0, 2, 3, 1)
        return total


class LGTransformer(SwinLayout):
    """Swin's layout.

    Args:
        heads: of each stage.
        paths: maps that each layer attends on, for each stage.
        layout: of :class:`SwinLayout`.
    """

    def __init__(
        self, heads: Sequence[int] = (3, 6, 12, 24), paths: Sequence[int] = (4, 3, 2, 1), **layout: Any
    ) -> None:
        def block(stage: int, place: int, dim: int, drop_path: float) -> nn.Module:
            attn = LocalToGlobal(dim, heads[stage], paths[stage], shifted=place % 2 == 1)
            return MapBlock(dim, attn, drop_path)

        super().__init__(block, **layout)


def load_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights as they are: there is no official checkpoint that could be read."""
    return dict(weights)


VARIANTS: dict[str, dict[str, Any]] = {
    "lg_transformer_tiny": {"depths": (2, 2, 6, 2)},
    "lg_transformer_small": {"depths": (2, 2, 18, 2)},
}

register_variants(
    __name__,
    LGTransformer,
    VARIANTS,
    kind="transformer",
    paper_ids="arXiv:2107.04735",
    first_conv="stem.proj",
    classifier="head.fc",
)
