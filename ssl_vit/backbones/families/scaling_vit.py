"""The two largest of Scaling Vision Transformers (2106.04560): no class token, and a head that pools by attention.

timm's plain ViT with its attention pooling: one learned query attends to all patches, and an MLP with a shortcut
follows. timm's own ``vit_giant_patch14_224`` and ``vit_gigantic_patch14_224`` are as wide and deep, with a class token.
"""

from __future__ import annotations

from typing import Any

from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD

from ssl_vit.backbones.layers import register_variants
from ssl_vit.backbones.plain import PlainViT


class ScaledViT(PlainViT):
    """A plain ViT of patches alone, pooled by attention."""

    def __init__(self, global_pool: str = "map", class_token: bool = False, **kwargs: Any) -> None:
        super().__init__(global_pool=global_pool, class_token=class_token, **kwargs)


def _variant(dim: int, depth: int, mlp: int) -> dict[str, Any]:
    return {"patch_size": 14, "embed_dim": dim, "depth": depth, "num_heads": 16, "mlp_ratio": mlp / dim}


VARIANTS: dict[str, dict[str, Any]] = {
    "vit_giant_patch14_map_224": _variant(1408, 40, 6144),
    "vit_gigantic_patch14_map_224": _variant(1664, 48, 8192),
}

register_variants(
    __name__,
    ScaledViT,
    VARIANTS,
    kind="transformer",
    out_indices=3,
    paper_ids="arXiv:2106.04560",
    mean=IMAGENET_INCEPTION_MEAN,
    std=IMAGENET_INCEPTION_STD,
    first_conv="patch_embed.proj",
    classifier="head",
)
