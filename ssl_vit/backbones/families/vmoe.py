"""V-MoE (2106.05974): a plain ViT in which some blocks have a mixture of MLPs, of which each token sees two.

``last2`` are the last two of every second block, ``every2`` all of those. An expert takes 1.05 times its equal share of
the tokens of a batch, in evaluation four times that of an image; tokens beyond it pass by. Losses of importance and
load keep all experts in use. Widths are the authors', whose S has 8 blocks of width 512; without their ``pre_logits``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.models.vision_transformer import Block
from torch import nn

from ssl_vit.backbones.experts import Losses, Mixture, check_experts
from ssl_vit.backbones.layers import register_variants
from ssl_vit.backbones.plain import PlainViT


class VMoE(PlainViT):
    """A plain ViT whose blocks `layers`, counted from 0, route each token to `chosen` of their `experts`.

    prioritised: tokens with the largest gate find room first. importance, load: weights of the losses, each block.
    """

    def __init__(
        self,
        layers: Sequence[int],
        experts: int = 8,
        chosen: int = 2,
        capacity: float = 1.05,
        eval_capacity: float = 4.0,
        prioritised: bool = False,
        noise: float = 1.0,
        importance: float = 0.005,
        load: float = 0.005,
        depth: int = 12,
        **kwargs: Any,
    ) -> None:
        if not all(0 <= layer < depth for layer in layers):
            raise ValueError(f"layers is {tuple(layers)}, but there are blocks 0 to {depth - 1}")
        blocks = [f"block {layer}" for layer in layers]

        def block(mlp_layer: Any, depth: int, **options: Any) -> nn.Module:
            if depth in layers:
                mlp_layer = partial(
                    Mixture,
                    experts=experts,
                    chosen=chosen,
                    capacity=capacity,
                    eval_capacity=eval_capacity,
                    losses=Losses(importance=importance, load=load),
                    prioritised=prioritised,
                    noise=noise,
                    row=tuple(layers).index(depth),
                    blocks=blocks,
                )
            return Block(mlp_layer=mlp_layer, depth=depth, **options)

        super().__init__(block_fn=block, depth=depth, **kwargs)
        tokens = self.patch_embed.num_patches + self.num_prefix_tokens
        check_experts(tokens, experts, chosen, capacity, eval_capacity)


SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}  # width, blocks, heads


def _variant(size: str, patch: int, last: int | None, experts: int) -> dict[str, Any]:
    dim, depth, heads = SIZES[size]
    layers = tuple(range(1, depth, 2))
    found = {"patch_size": patch, "embed_dim": dim, "depth": depth, "num_heads": heads, "experts": experts}
    return found | {"layers": layers if last is None else layers[-last:]}


VARIANTS: dict[str, dict[str, Any]] = {
    "vmoe_small_patch32_last2_e8_224": _variant("small", 32, 2, 8),
    "vmoe_small_patch32_every2_e32_224": _variant("small", 32, None, 32),
    "vmoe_base_patch32_every2_e32_224": _variant("base", 32, None, 32),
    "vmoe_base_patch16_every2_e8_224": _variant("base", 16, None, 8),
    "vmoe_base_patch16_every2_e32_224": _variant("base", 16, None, 32),
    "vmoe_large_patch16_every2_e32_224": _variant("large", 16, None, 32),
}

register_variants(
    __name__,
    VMoE,
    VARIANTS,
    kind="transformer",
    out_indices=3,
    paper_ids="arXiv:2106.05974",
    mean=IMAGENET_INCEPTION_MEAN,
    std=IMAGENET_INCEPTION_STD,
    first_conv="patch_embed.proj",
    classifier="head",
)
