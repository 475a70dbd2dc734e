"""Shuffle Transformer (arXiv 2106.03650): windows of neighbours alternate with windows spread over the whole map.

A spread window takes every k-th token, so that two blocks connect the whole map; a depthwise convolution as large as
the window connects neighbouring windows. Convolutions and batch norms throughout.

At other sizes than the built one the windows shrink until they tile the map, and the rest is padded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from timm.layers.config import use_fused_attn
from timm.layers.drop import DropPath
from timm.layers.mlp import ConvMlp
from torch import Tensor, nn

from ssl_vit.backbones.layers import attend, init_linear, pad_to_multiple, register_variants, rename_keys
from ssl_vit.backbones.pyramid import Pyramid, PyramidStage, drop_path_rates
from ssl_vit.backbones.windows import RelativePositionBias, even_windows

HEAD_DIM = 32
WINDOW = 7  # cells


class WindowAttention(nn.Module):
    """Attention inside windows of neighbours, or with `spread` of tokens as far apart as the map allows."""

    def __init__(self, dim: int, heads: int, spread: bool) -> None:
        super().__init__()
        self.heads, self.spread = heads, spread
        self.fused_attn = use_fused_attn()  # unfused, operations run in the official order
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.position = RelativePositionBias((WINDOW, WINDOW), heads)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, D, H, W]."""
        batch, dim, height, width = x.shape
        high, wide = even_windows((height, width), (WINDOW, WINDOW))
        qkv = F.pad(self.to_qkv(x), (0, -width % wide, 0, -height % high))
        full = qkv.shape[-2:]
        rows, columns = full[0] // high, full[1] // wide
        # a window's own cells are the slow index of each side when it is spread, the fast one when it is not
        sides = (high, rows, wide, columns) if self.spread else (rows, high, columns, wide)
        inner = (4, 6) if self.spread else (5, 7)
        outer = (5, 7) if self.spread else (4, 6)
        qkv = qkv.view(batch, 3, self.heads, dim // self.heads, *sides).permute(1, 0, *outer, 2, *inner, 3)
        q, k, v = qkv.reshape(3, batch * rows * columns, self.heads, high * wide, dim // self.heads)
        bias = self.position((high, wide))
        if self.fused_attn:
            out = attend(q, k, v, bias)
        else:
            out = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias).softmax(dim=-1) @ v
        out = out.view(batch, rows, columns, self.heads, high, wide, -1)
        out = out.permute(0, 3, 6, *((4, 1, 5, 2) if self.spread else (1, 4, 2, 5)))
        x = self.proj(out.reshape(batch, dim, *full)[..., :height, :width])
        return x


class Block(nn.Module):
    """Window attention, a depthwise convolution and an MLP, each with a skip."""

    def __init__(self, dim: int, heads: int, spread: bool, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(dim)
        self.attn = WindowAttention(dim, heads, spread)
        self.norm2 = nn.BatchNorm2d(dim)
        self.local = nn.Conv2d(dim, dim, WINDOW, padding=WINDOW // 2, groups=dim)
        self.norm3 = nn.BatchNorm2d(dim)
        self.mlp = ConvMlp(dim, 4 * dim, act_layer=nn.ReLU6)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, D, H, W]."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.local(self.norm2(x))
        x = x + self.drop_path(self.mlp(self.norm3(x)))
        return x


class PatchMerging(nn.Module):
    """A batch norm and a convolution over pairs of rows and columns."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.reduction = nn.Conv2d(dim, out_dim, 2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D, H / 2, W / 2]."""
        x = self.reduction(pad_to_multiple(self.norm(x), 2))
        return x


class ShuffleTransformer(Pyramid):
    """A convolution stem, four stages at strides 4 to 32 and a linear head on the mean of the last map.

    Args:
        depths, heads: of each stage, depths even; heads have 32 channels.
        img_size: taken for timm's sake; nothing in the family depends on it.
        head: `num_classes`, `global_pool`, `drop_rate` of :class:`Pyramid`.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        **head: Any,
    ) -> None:
        dims = [HEAD_DIM * count for count in heads]
        stages = []
        for i, [rate] in enumerate(drop_path_rates(drop_path_rate, [1] * 4)):  # one a stage, as in the official code
            blocks = [Block(dims[i], heads[i], spread=j % 2 == 1, drop_path=rate) for j in range(depths[i])]
            stages.append(PyramidStage(PatchMerging(dims[i - 1], dims[i]) if i else nn.Identity(), blocks))
        stem = nn.Sequential(
            nn.Conv2d(in_chans, 32, 3, 2, 1),
            nn.BatchNorm2d(32),
            nn.ReLU6(inplace=True),
            nn.Conv2d(32, dims[0], 3, 2, 1),
            nn.BatchNorm2d(dims[0]),
            nn.ReLU6(inplace=True),
            nn.Conv2d(dims[0], dims[0], 1),
        )
        super().__init__(stem, stages, dims, in_chans=in_chans, **head)
        init_linear(self, nn.Conv2d)


def load_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint of mulinmeng/Shuffle-Transformer to our names."""
    return rename_keys(
        {name: weight for name, weight in weights.items() if not name.endswith("relative_position_index")},
        (r"^to_token\.conv1\.", "stem."),
        (r"^to_token\.conv2\.(\d)", lambda match: f"stem.{int(match[1]) + 3}"),
        (r"^to_token\.conv3\.", "stem.6."),
        (r"^stage(\d)\.patch_partition", lambda match: f"stages.{int(match[1]) - 1}.downsample"),
        (
            r"^stage(\d)\.layers\.(\d+)\.(\d)",
            lambda match: f"stages.{int(match[1]) - 1}.blocks.{2 * int(match[2]) + int(match[3])}",
        ),
        (r"attn\.relative", "attn.position.relative"),
        (r"^head\.(weight|bias)", r"head.fc.\1"),
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "shuffle_vit_tiny_patch4_window7_224": {"depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)},
    "shuffle_vit_small_patch4_window7_224": {"depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24)},
    "shuffle_vit_base_patch4_window7_224": {"depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)},
}

register_variants(
    __name__,
    ShuffleTransformer,
    VARIANTS,
    kind="transformer",
    paper_ids="arXiv:2106.03650",
    first_conv="stem.0",
    classifier="head.fc",
)
