"""Pyramid Group Transformer, the encoder of Fully Transformer Networks (arXiv 2106.04108).

The map is cut into 8 x 8 groups in the first stage, 4 x 4 in the second, and not at all in the last two; tokens attend
inside their group. So a group grows with the image, and any size runs; the last groups of a side that the number of
groups doesn't divide are padded with zeros. Positions come from a depthwise convolution after each block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.backbones.layers import PatchEmbed, merge_heads, register_variants, rename_keys, split_heads
from ssl_vit.backbones.pyramid import SwinLayout
from ssl_vit.backbones.windows import MapBlock, from_windows, to_windows


class GroupAttention(nn.Module):
    """Attention inside each of `groups` x `groups` parts of the map."""

    def __init__(self, dim: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups = heads, groups
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]."""
        size = (x.shape[1], x.shape[2])
        group = (math.ceil(size[0] / self.groups), math.ceil(size[1] / self.groups))
        tokens = to_windows(x, group)
        q, k, v = (split_heads(part, self.heads) for part in (self.q(tokens), *self.kv(tokens).chunk(2, dim=-1)))
        out = merge_heads(F.scaled_dot_product_attention(q, k, v))
        x = self.proj(from_windows(out, group, size))
        return x


class Block(MapBlock):
    """A block that ends with a depthwise convolution and a skip, which tells tokens where they are."""

    def __init__(self, dim: int, attn: nn.Module, drop_path: float) -> None:
        super().__init__(dim, attn, drop_path)
        self.cpe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]."""
        x = super().forward(x)
        x = x + self.cpe(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x


class PyramidGroupTransformer(SwinLayout):
    """Swin's layout, with patches that are layer-normed at every stage.

    Args:
        heads: of each stage.
        groups: along each side of the map, for each stage.
        layout: of :class:`SwinLayout`.
    """

    def __init__(
        self, heads: Sequence[int] = (2, 4, 8, 16), groups: Sequence[int] = (8, 4, 1, 1), **layout: Any
    ) -> None:
        def block(stage: int, place: int, dim: int, drop_path: float) -> nn.Module:
            return Block(dim, GroupAttention(dim, heads[stage], groups[stage]), drop_path)

        super().__init__(block, partial(PatchEmbed, patch=2), **layout)


def load_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the authors' encoder for mmsegmentation to our names, less the norms before the decoder.

    It has no classifier; build the model with ``num_classes=0`` to load it.
    """
    return rename_keys(
        {name: weight for name, weight in weights.items() if name.split(".")[0] not in ("norm0", "norm1", "norm2")},
        (r"^norm3\.", "norm."),
        (r"^stages\.0\.transform\.", "stem."),
        (r"\.transform\.", ".downsample."),
        (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
        (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
        (r"\.cpe\.conv\.", ".cpe."),
    )


VARIANTS: dict[str, dict[str, Any]] = {"pgt_tiny": {"embed_dim": 64, "depths": (2, 2, 6, 2), "heads": (2, 4, 8, 16)}}

register_variants(
    __name__,
    PyramidGroupTransformer,
    VARIANTS,
    kind="transformer",
    paper_ids="arXiv:2106.04108",
    first_conv="stem.proj",
    classifier="head.fc",
)
