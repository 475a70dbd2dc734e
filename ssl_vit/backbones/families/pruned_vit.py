"""Pruned plain ViTs (VTP, 2104.08500): each block has the heads, channels and hidden units that were left to it.

Before pruning, a learnable factor (gate) lies on every input of the linear layers: of queries, keys and values, of the
projection behind attention, and of both layers of the MLP. What is pruned is gone from the layers' weights: a layer
that reads less than the tokens' width picks its inputs out of them by their numbers. Heads of a block keep equally many
channels of their values each, as one product over all heads needs it; queries and keys keep theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_vit.backbones.layers import merge_heads, register_variants, split_heads
from ssl_vit.backbones.penalties import penalise
from ssl_vit.backbones.plain import PlainViT

PACE = 10  # gates move so many times as fast as weights, or a short training would leave them where they were

Widths = Sequence[int] | None  # one of each block; None: nothing is pruned


class Gate(nn.Module):
    """Every channel is multiplied by a factor of its own, [..., D] -> [..., D]; the sum of their sizes is penalised."""

    def __init__(self, dim: int, weight: float) -> None:
        super().__init__()
        self.weight = weight  # of the penalty
        self.tenths = nn.Parameter(torch.full((dim,), 1 / PACE))

    def factors(self) -> Tensor:
        """The factors [D]."""
        return PACE * self.tenths

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        factors = self.factors()
        penalise("gates", self.weight * factors.abs().sum())
        return x * factors


class Pick(nn.Module):
    """Some channels of all, by their numbers in ascending order: [..., D] -> [..., d]."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.index: Tensor
        self.register_buffer("index", torch.arange(count))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., d]."""
        return x.index_select(-1, self.index)


def _gate(dim: int, weight: float) -> nn.Module:
    return Gate(dim, weight) if weight else nn.Identity()


def _pick(dim: int, count: int) -> nn.Module:
    return Pick(count) if count < dim else nn.Identity()


class PrunedAttention(nn.Module):
    """Attention of the heads that are left, [B, N, D] -> [B, N, D].

    inputs: channels that it reads; values: channels of each head's values; gates: weight of the penalty on them, 0 for
    none.
    """

    def __init__(
        self,
        dim: int,
        head_dim: int,
        inputs: int,
        heads: int,
        values: int,
        gates: float,
        qkv_bias: bool,
        proj_bias: bool,
        norm: type[nn.Module] | None,
        attn_drop: float,
        proj_drop: float,
    ) -> None:
        super().__init__()
        self.heads, self.head_dim, self.values = heads, head_dim, values
        self.pick, self.gate = _pick(dim, inputs), _gate(inputs, gates)
        self.qkv = nn.Linear(inputs, heads * (2 * head_dim + values), bias=qkv_bias)
        self.q_norm = norm(head_dim) if norm else nn.Identity()
        self.k_norm = norm(head_dim) if norm else nn.Identity()
        self.attn_drop = attn_drop
        self.proj_gate = _gate(heads * values, gates)
        self.proj = nn.Linear(heads * values, dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        parts = self.qkv(self.gate(self.pick(x)))
        wide, narrow = self.heads * self.head_dim, self.heads * self.values
        query, key, value = (split_heads(part, self.heads) for part in parts.split([wide, wide, narrow], dim=-1))
        if self.values < self.head_dim:  # the quick kernels of attention know one width alone
            value = F.pad(value, (0, self.head_dim - self.values))
        drop = self.attn_drop if self.training else 0.0
        given = (self.q_norm(query), self.k_norm(key), value)
        x = F.scaled_dot_product_attention(*given, attn_mask=attn_mask, dropout_p=drop, is_causal=is_causal)
        x = self.proj(self.proj_gate(merge_heads(x[..., : self.values])))
        x = self.proj_drop(x)
        return x


class PrunedMlp(nn.Module):
    """An MLP of the hidden units that are left, [B, N, D] -> [B, N, D]; arguments as those of `PrunedAttention`."""

    def __init__(
        self, dim: int, inputs: int, hidden: int, gates: float, act: type[nn.Module], bias: bool, drop: float
    ) -> None:
        super().__init__()
        self.pick, self.gate = _pick(dim, inputs), _gate(inputs, gates)
        self.fc1 = nn.Linear(inputs, hidden, bias=bias)
        self.act = act()
        self.drop1 = nn.Dropout(drop)
        self.hidden_gate = _gate(hidden, gates)
        self.fc2 = nn.Linear(hidden, dim, bias=bias)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        x = self.drop1(self.act(self.fc1(self.gate(self.pick(x)))))
        x = self.drop2(self.fc2(self.hidden_gate(x)))
        return x


class Left(dict[str, Widths]):
    """What is left of each layer: ``heads``, ``values``, ``attn_inputs``, ``mlp_inputs``, ``hidden``, one a block."""

    def of(self, name: str, depth: int, whole: int) -> int:
        """What is left at a depth."""
        widths = self[name]
        return whole if widths is None else widths[depth]


class PrunedBlock(Block):
    """timm's block, with the layers that are left."""

    def __init__(self, dim: int, num_heads: int, left: Left, gates: float, depth: int, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, depth=depth, **kwargs)
        head_dim, hidden = dim // num_heads, int(dim * kwargs["mlp_ratio"])
        act, drop = kwargs["act_layer"], kwargs["proj_drop"]
        self.attn = PrunedAttention(
            dim,
            head_dim,
            left.of("attn_inputs", depth, dim),
            left.of("heads", depth, num_heads),
            left.of("values", depth, head_dim),
            gates,
            kwargs["qkv_bias"],
            kwargs["proj_bias"],
            kwargs["norm_layer"] if kwargs["qk_norm"] else None,
            kwargs["attn_drop"],
            drop,
        )
        inputs, units = left.of("mlp_inputs", depth, dim), left.of("hidden", depth, hidden)
        self.mlp = PrunedMlp(dim, inputs, units, gates, act, kwargs["proj_bias"], drop)


class PrunedViT(PlainViT):
    """A plain ViT of which a part is left, or that is about to be pruned.

    Args:
        heads, values: how many heads a block has, and how many channels of values each of them.
        attn_inputs, mlp_inputs: how many of the tokens' channels attention and the MLP read.
        hidden: how many hidden units the MLP has. All of these are one number a block; without, nothing is pruned.
        gates: weight of the penalty on gates before all linear layers; 0 for no gates.
        kwargs: timm's, of the network before it was pruned.
    """

    def __init__(
        self,
        heads: Widths = None,
        values: Widths = None,
        attn_inputs: Widths = None,
        mlp_inputs: Widths = None,
        hidden: Widths = None,
        gates: float = 0.0,
        **kwargs: Any,
    ) -> None:
        left = Left(heads=heads, values=values, attn_inputs=attn_inputs, mlp_inputs=mlp_inputs, hidden=hidden)
        depth = kwargs.get("depth", 12)
        for name, widths in left.items():
            if widths is not None and (len(widths) != depth or min(widths) < 1):
                raise ValueError(
                    f"{name} has {len(widths)} numbers from {min(widths, default=0)}; expected {depth} above 0"
                )
        super().__init__(block_fn=partial(PrunedBlock, left=left, gates=gates), **kwargs)


VARIANTS: dict[str, dict[str, Any]] = {"pruned_vit": {"patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3}}

register_variants(
    __name__,
    PrunedViT,
    VARIANTS,
    kind="transformer",
    out_indices=3,
    paper_ids="arXiv:2104.08500",
    first_conv="patch_embed.proj",
    classifier="head",
)
