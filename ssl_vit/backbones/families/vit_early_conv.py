"""ViT-C and ViT-P, early convolutions help transformers see better (arXiv:2106.14881).

ViT-C is a plain ViT whose patch embedding is a handful of strided 3 x 3 convolutions, as dear as the one block that it
gives up for them; it trains more stably. ViT-P is the same ViT with square patches, what ViT-C is held against.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

from ssl_vit.backbones.layers import register_variants, rename_keys
from ssl_vit.backbones.plain import PlainViT, stem_embed


def conv_stem(in_chans: int, dim: int, widths: Sequence[int], strides: Sequence[int]) -> nn.Sequential:
    """Build 3 x 3 convolutions with batch norm and ReLU, then 1 x 1 to the width of the tokens."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (width, stride) in enumerate(zip(widths, strides, strict=True)):
        layers[f"conv{i}"] = nn.Conv2d(in_chans, width, 3, stride=stride, padding=1, bias=False)
        layers[f"bn{i}"] = nn.BatchNorm2d(width)
        layers[f"act{i}"] = nn.ReLU()
        in_chans = width
    layers["last"] = nn.Conv2d(in_chans, dim, 1)
    return nn.Sequential(layers)


class EarlyConvViT(PlainViT):
    """A plain ViT, with a convolutional stem where `widths` gives one.

    Args:
        widths, strides: of the stem's convolutions; strides multiply to 16. None: square patches of 16 pixels.
        kwargs: of timm's VisionTransformer.
    """

    def __init__(
        self, widths: Sequence[int] | None = None, strides: Sequence[int] = (2, 2, 2, 2), **kwargs: Any
    ) -> None:
        embed = PatchEmbed if widths is None else stem_embed(partial(conv_stem, widths=widths, strides=strides), 16)
        super().__init__(embed_layer=embed, norm_layer=partial(nn.LayerNorm, eps=1e-5), **kwargs)


def load_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint of pycls to our names."""
    renamed = rename_keys(
        state_dict,
        (r"^stem\.patchify\.", "patch_embed.proj."),
        (r"^stem\.cstem_last_conv\.", "patch_embed.stem.last."),
        (r"^stem\.cstem(\d)_(conv|bn)\.", r"patch_embed.stem.\2\1."),
        (r"^encoder\.block_(\d+)\.", r"blocks.\1."),
        (r"^encoder\.ln\.", "norm."),
        (r"\.ln_(\d)\.", r".norm\1."),
        (r"\.self_attention\.block\.in_proj_", ".attn.qkv."),
        (r"\.self_attention\.block\.out_proj\.", ".attn.proj."),
        (r"\.mlp_block\.linear_(\d)\.", r".mlp.fc\1."),
        (r"^class_token$", "cls_token"),
        (r"^pos_embedding$", "pos_embed"),
        (r"^head\.head_fc\.", "head."),
    )
    renamed["pos_embed"] = renamed["pos_embed"].transpose(0, 1)  # [N, 1, D] in pycls
    return renamed


SIZES: dict[str, dict[str, Any]] = {
    "1gf": {"embed_dim": 192, "num_heads": 3, "mlp_ratio": 3.0},
    "4gf": {"embed_dim": 384, "num_heads": 6, "mlp_ratio": 3.0},
    "18gf": {"embed_dim": 768, "num_heads": 12},
    "36gf": {"embed_dim": 1024, "num_heads": 16},
}
DEEP_STEM = {"widths": (64, 128, 128, 256, 256, 512), "strides": (2, 2, 1, 2, 1, 2)}
VARIANTS: dict[str, dict[str, Any]] = {
    **{f"vit_p_{size}": {**arguments, "depth": 14 if size == "36gf" else 12} for size, arguments in SIZES.items()},
    "vit_c_1gf": {**SIZES["1gf"], "depth": 11, "widths": (24, 48, 96, 192)},
    "vit_c_4gf": {**SIZES["4gf"], "depth": 11, "widths": (48, 96, 192, 384)},
    "vit_c_18gf": {**SIZES["18gf"], "depth": 11, **DEEP_STEM},
    "vit_c_36gf": {**SIZES["36gf"], "depth": 13, **DEEP_STEM},
}
register_variants(
    __name__,
    EarlyConvViT,
    VARIANTS,
    kind="transformer",
    out_indices=3,
    paper_ids="arXiv:2106.14881",
    first_conv=None,
    classifier="head",
)
