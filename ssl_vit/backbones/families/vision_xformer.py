"""Vision X-formers (2107.02239): a plain ViT whose attention costs time linear in the number of tokens.

The kinds are in :mod:`ssl_vit.backbones.attention`; every plain family takes them as ``attn_layer``. FNet has no
attention at all. Hybrids embed patches by three convolutions with nothing between them.

The paper's nets are small ones for 32-pixel images with a token a pixel; these have the sizes of DeiT. Chosen here:
where patches are larger than a pixel, the stem's first two convolutions halve the image and the last is the patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from ssl_vit.backbones.attention import ATTENTIONS
from ssl_vit.backbones.layers import register_variants, rename_keys
from ssl_vit.backbones.plain import PlainViT, stem_embed


def conv_stem(in_chans: int, dim: int, patch: int) -> nn.Sequential:
    """Build convolutions 3 x 3 to 32, to 64 and to `dim` channels, [B, C, H, W] -> [B, D, H / patch, W / patch]."""
    stride = 1 if patch % 4 else 2
    rest = patch // stride**2
    return nn.Sequential(
        nn.Conv2d(in_chans, 32, 3, stride, padding=1),
        nn.Conv2d(32, 64, 3, stride, padding=1),
        nn.Conv2d(64, dim, 3, padding=1) if rest == 1 else nn.Conv2d(64, dim, rest, rest),
    )


class VisionXFormer(PlainViT):
    """A plain ViT with one of the efficient kinds of attention; with `hybrid`, patches come from convolutions."""

    def __init__(self, hybrid: bool = False, patch_size: int = 16, **kwargs: Any) -> None:
        if hybrid:
            kwargs["embed_layer"] = stem_embed(partial(conv_stem, patch=patch_size), patch_size)
        super().__init__(patch_size=patch_size, norm_layer=nn.LayerNorm, **kwargs)


def load_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint of the authors' FNet or hybrid FNet to our names; their attention layers differ."""
    hybrid = "to_patch_embedding.0.weight" in state_dict
    renamed = rename_keys(
        state_dict,
        (r"^to_patch_embedding\.", "patch_embed.stem.")
        if hybrid
        else (r"^to_patch_embedding\.1\.", "patch_embed.proj."),
        (r"^pos_embedding$", "pos_embed"),
        (r"^transformer\.layers\.(\d+)\.0\.norm\.", r"blocks.\1.norm1."),
        (r"^transformer\.layers\.(\d+)\.1\.norm\.", r"blocks.\1.norm2."),
        (r"^transformer\.layers\.(\d+)\.1\.fn\.net\.0\.", r"blocks.\1.mlp.fc1."),
        (r"^transformer\.layers\.(\d+)\.1\.fn\.net\.3\.", r"blocks.\1.mlp.fc2."),
        (r"^mlp_head\.0\.", "norm."),
        (r"^mlp_head\.1\.", "head."),
    )
    patches = renamed.get("patch_embed.proj.weight")
    if patches is not None and patches.ndim == 2:  # a linear layer over the rows, columns and colours of a patch
        side = round((patches.shape[1] / 3) ** 0.5)
        renamed["patch_embed.proj.weight"] = patches.view(-1, side, side, 3).permute(0, 3, 1, 2)
    return renamed


SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}


def _variants(name: str, **options: Any) -> dict[str, dict[str, Any]]:
    return {
        name.format(size=size, kind=kind): {"embed_dim": dim, "num_heads": heads, "attn_layer": kind, **options}
        for kind in ATTENTIONS
        for size, (dim, heads) in SIZES.items()
    }


PLAIN = _variants("vit_{size}_{kind}_patch16_224")
HYBRID = _variants("vit_{size}_{kind}_hybrid_patch16_224", hybrid=True)
VARIANTS = PLAIN | HYBRID

for variants, first_conv in ((PLAIN, "patch_embed.proj"), (HYBRID, "patch_embed.stem.0")):
    register_variants(
        __name__,
        VisionXFormer,
        variants,
        kind="transformer",
        out_indices=3,
        paper_ids="arXiv:2107.02239",
        first_conv=first_conv,
        classifier="head",
    )
