"""Refiner (2106.03714): attention maps, seen as images with a channel a head, are refined by convolutions.

Blocks come in pairs. The first computes its attention map and adds the last pair's map; the second computes none: it
refines the first one's (1 x 1 convolution to three times the heads, 3 x 3 depthwise, 1 x 1 back) and applies that to
its own values. A second, dense head adds half of its largest logit over the patches to the class token's.

Maps can't be fused away: memory grows with the square of the tokens, to some 9 GB an image at 800 x 1333 pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers.conv_bn_act import ConvNormAct
from timm.layers.drop import DropPath
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from ssl_vit.backbones.layers import merge_heads, register_variants, rename_keys, split_heads
from ssl_vit.backbones.plain import DenseHeadViT, stem_embed

STRIDE = 16
EXPANSION = 3  # channels per head while a map is refined
HALF = 0.5  # blocks see half the activations and give twice their branch

conv_act = partial(ConvNormAct, act_layer=nn.ReLU6)


class Attention(nn.Module):
    """Multi-head attention that also gives its maps and adds the maps handed to it."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool, attn_drop: float, proj_drop: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, earlier: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, N, D] and maps [B, heads, N, N] -> [B, N, D] and maps."""
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        maps = (query * self.scale @ key.transpose(-2, -1)).softmax(-1)
        if earlier is not None:
            maps = maps + earlier * self.scale
        maps = self.attn_drop(maps)
        return self.proj_drop(self.proj(merge_heads(maps @ value))), maps


class RefinedAttention(nn.Module):
    """Applies a refined form of the maps handed to it to its own values, and hands the maps on as they came."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool, proj_drop: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        wide = EXPANSION * heads
        self.expand = conv_act(heads, wide, 1)
        self.local = conv_act(wide, wide, 3, groups=wide)
        self.reduce = ConvNormAct(wide, heads, 1, apply_act=False)
        self.norm = nn.BatchNorm2d(heads)
        self.value = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, earlier: Tensor) -> tuple[Tensor, Tensor]:
        """[B, N, D] and maps [B, heads, N, N] -> [B, N, D] and maps."""
        maps = self.norm(earlier + self.reduce(self.local(self.expand(earlier)))) * self.scale
        return self.proj_drop(self.proj(merge_heads(maps @ split_heads(self.value(x), self.heads)))), earlier


class Block(nn.Module):
    """A pre-norm block that hands on attention maps; every second one refines them."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        attn_drop: float,
        proj_drop: float,
        drop_path: float,
        norm_layer: type[nn.Module],
        depth: int,
        **_: Any,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn: nn.Module
        if depth % 2:
            self.attn = RefinedAttention(dim, num_heads, qkv_bias, proj_drop)
        else:
            self.attn = Attention(dim, num_heads, qkv_bias, attn_drop, proj_drop)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.layer_scale = LayerScale(dim, 1e-5)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, maps: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, N, D] and maps [B, heads, N, N] (None before the first block) -> the same."""
        mixed, maps = self.attn(self.norm1(x * HALF), maps)
        x = x + self.drop_path(mixed) / HALF
        return x + self.drop_path(self.layer_scale(self.mlp(self.norm2(x * HALF)))) / HALF, maps


def stem(in_chans: int, embed_dim: int) -> nn.Module:
    """Build three convolutions at half the resolution, then patches of 8 x 8."""
    return nn.Sequential(
        ConvNormAct(in_chans, 32, 7, stride=2),
        ConvNormAct(32, 64, 3),
        ConvNormAct(64, 128, 3),
        nn.Conv2d(128, embed_dim, STRIDE // 2, stride=STRIDE // 2),
    )


class Refiner(DenseHeadViT):
    """A plain ViT with a convolutional stem, refined attention and a dense second head."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(embed_layer=stem_embed(stem, STRIDE), block_fn=Block, mlp_ratio=3.0, **kwargs)

    def walk(self, x: Tensor) -> Iterator[Tensor]:
        """The tokens [B, N, D] after each block; attention maps travel beside them."""
        maps = None
        for block in self.blocks:
            x, maps = self.run(block, x, maps)
            yield x


OFFICIAL = (  # pattern of official names -> ours
    (r"patch_embed\.conv(\d)\.", lambda m: f"patch_embed.stem.{int(m[1]) - 1}.conv."),
    (r"patch_embed\.bn(\d)\.", lambda m: f"patch_embed.stem.{int(m[1]) - 1}.bn."),
    (r"patch_embed\.proj\.", "patch_embed.stem.3."),
    (r"\.mlp\.scale_channel$", ".layer_scale.gamma"),
    (r"\.adapt_bn\.", ".norm."),
    (r"\.DLA\.conv_exp\.", ".expand.conv."),
    (r"\.DLA\.bn1\.", ".expand.bn."),
    (r"\.DLA\.depth_sep_conv\.", ".local.conv."),
    (r"\.DLA\.bn2\.", ".local.bn."),
    (r"\.DLA\.conv_pro\.", ".reduce.conv."),
    (r"\.DLA\.bn3\.", ".reduce.bn."),
    (r"^(blocks\.\d*[13579]\.attn)\.qkv\.", r"\1.value."),
)


def load_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official checkpoint to our names."""
    return rename_keys(state_dict, *OFFICIAL)


VARIANTS: dict[str, dict[str, Any]] = {
    "refiner_vit_s": {"embed_dim": 384, "depth": 16, "num_heads": 12},
    "refiner_vit_m": {"embed_dim": 420, "depth": 32, "num_heads": 12},
    "refiner_vit_l": {"embed_dim": 512, "depth": 32, "num_heads": 16},
}

register_variants(
    __name__,
    Refiner,
    VARIANTS,
    kind="transformer",
    out_indices=3,
    paper_ids="arXiv:2106.03714",
    mean=IMAGENET_INCEPTION_MEAN,
    std=IMAGENET_INCEPTION_STD,
    first_conv="patch_embed.stem.0.conv",
    classifier=("head", "aux_head"),
)
