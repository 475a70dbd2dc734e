"""Vision X-formers (2107.02239): a plain ViT whose attention costs time linear in the number of tokens.

The kinds are in :mod:`ssl_vit.backbones.attention`; every plain family takes them as ``attn_layer``. The paper's nets
are small ones for 32-pixel images; these have the sizes of DeiT.
"""

from __future__ import annotations

from typing import Any

from ssl_vit.backbones.attention import ATTENTIONS
from ssl_vit.backbones.layers import register_variants
from ssl_vit.backbones.plain import PlainViT


class VisionXFormer(PlainViT):
    """A plain ViT with one of the efficient kinds of attention."""


SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
VARIANTS: dict[str, dict[str, Any]] = {
    f"vit_{size}_{kind}_patch16_224": {"embed_dim": dim, "num_heads": heads, "attn_layer": kind}
    for kind in ATTENTIONS
    for size, (dim, heads) in SIZES.items()
}

register_variants(
    __name__,
    VisionXFormer,
    VARIANTS,
    out_indices=3,
    paper_ids="arXiv:2107.02239",
    first_conv="patch_embed.proj",
    classifier="head",
)
