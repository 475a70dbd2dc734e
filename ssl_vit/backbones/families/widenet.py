"""WideNet (2107.11817): all blocks share one attention and one mixture of MLPs, and keep only their layer norms.

Of four experts each token sees two, as in V-MoE; the norms differ by depth, so that the router sends a token elsewhere
at each. One loss keeps the experts balanced. The class token begins as nothing but its position, and the mean of all
tokens, itself included, is the image's vector. MLPs are the paper's: the authors' code has a second GELU behind them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from timm.layers.attention import Attention
from timm.layers.drop import DropPath
from torch import Tensor, nn

from ssl_vit.backbones.experts import Losses, Mixture, check_experts
from ssl_vit.backbones.layers import register_variants
from ssl_vit.backbones.plain import WiredViT


class Norms(nn.Module):
    """What a block has of its own; attention and MLPs are handed to it."""

    def __init__(self, dim: int, drop_path: float, norm_layer: type[nn.Module], **_: Any) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm_layer(dim), norm_layer(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, attention: nn.Module, mixture: nn.Module) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        x = x + self.drop_path(attention(self.norm1(x)))
        x = x + self.drop_path(mixture(self.norm2(x)))
        return x


class WideNet(WiredViT):
    """A plain ViT of one block used `depth` times, with the layer norms of each time; balance: weight of the loss."""

    def __init__(
        self,
        experts: int = 4,
        chosen: int = 2,
        capacity: float = 1.2,
        eval_capacity: float = 1.2,
        prioritised: bool = False,
        noise: float = 1.0,
        balance: float = 0.01,
        embed_dim: int = 768,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        fixed: dict[str, Any] = {"global_pool": "avg", "fc_norm": False, "pool_include_prefix": True}
        fixed |= {"no_embed_class": True, "block_fn": Norms, "embed_dim": embed_dim, "num_heads": num_heads}
        super().__init__(**{**fixed, **kwargs})
        tokens = self.patch_embed.num_patches + self.num_prefix_tokens
        check_experts(tokens, experts, chosen, capacity, eval_capacity)
        self.attention = Attention(
            embed_dim, num_heads, qkv_bias=True, attn_drop=attn_drop_rate, proj_drop=proj_drop_rate
        )
        self.mixture = Mixture(
            embed_dim,
            int(embed_dim * mlp_ratio),
            experts,
            chosen,
            capacity,
            eval_capacity,
            Losses(balance=balance),
            prioritised,
            noise,
            drop=proj_drop_rate,
        )
        self.init_weights(needs_reset=False)

    def walk(self, x: Tensor) -> Iterator[Tensor]:
        """The tokens [B, N, D] after each block."""
        for norms in self.blocks:
            x = self.run(norms, x, self.attention, self.mixture)
            yield x

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """What all blocks share changes with the first."""
        groups: dict[str, Any] = super().group_matcher(coarse)
        return groups | {"stem": rf"{groups['stem']}|attention|mixture"}


VARIANTS: dict[str, dict[str, Any]] = {
    "widenet_base_patch16_224": {"embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 4096 / 768},
    "widenet_large_patch16_224": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "mlp_ratio": 4.0},
    "widenet_huge_patch14_224": {
        "patch_size": 14,
        "embed_dim": 1280,
        "depth": 32,
        "num_heads": 16,
        "mlp_ratio": 4.0,
    },
}

register_variants(
    __name__,
    WideNet,
    VARIANTS,
    kind="transformer",
    out_indices=3,
    paper_ids="arXiv:2107.11817",
    first_conv="patch_embed.proj",
    classifier="head",
)
