"""T2T-ViT (2101.11986): overlapping windows of tokens become tokens, twice, before a slim plain ViT.

Unfold 7 x 7 with stride 4, a token mixer, unfold 3 x 3 with stride 2, a token mixer, project 3 x 3 with stride 2:
14 x 14 tokens of a 224-pixel image. The mixer is a Performer (2009.14794, positive random features, linear in the
number of tokens) or, in the ``_t`` variants, one-head attention. Positions are fixed sinusoids over the token index.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.mlp import Mlp
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from ssl_vit.backbones.layers import no_autocast, register_variants, to_map
from ssl_vit.backbones.plain import PlainViT, stem_embed

WINDOW = (7, 4, 2)  # the first one's side, stride and padding, pixels; 16 pixels per token: 4 * 2 * 2
TOKEN_DIM = 64


class TokenPerformer(nn.Module):
    """A Performer layer of one head that narrows tokens: [B, N, C] -> [B, N, D], in time linear in N."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.kqv = nn.Linear(dim, 3 * out_dim)
        self.proj = nn.Linear(out_dim, out_dim)
        self.drop = nn.Dropout(0.1)  # the official code's, of this layer alone
        self.norm2 = nn.LayerNorm(out_dim)
        self.mlp = nn.Sequential(nn.Linear(out_dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim), nn.Dropout(0.1))
        features = out_dim // 2
        directions = nn.init.orthogonal_(torch.empty(features, out_dim)) * math.sqrt(features)
        self.w = nn.Parameter(directions, requires_grad=False)

    def features(self, x: Tensor) -> Tensor:
        """Positive random features of the softmax kernel, [B, N, D] -> [B, N, D / 2]."""
        return torch.exp(x @ self.w.T - x.square().sum(-1, keepdim=True) / 2) / math.sqrt(len(self.w))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, D]."""
        key, query, value = self.kqv(self.norm1(x)).chunk(3, dim=-1)
        with no_autocast(x):  # exponentials and sums over all tokens need float32
            value32 = value.float()
            key32, query32 = self.features(key.float()), self.features(query.float())
            total = query32 @ key32.sum(1).unsqueeze(-1)
            mixed = query32 @ (key32.transpose(1, 2) @ value32) / (total + 1e-8)
        x = value + self.drop(self.proj(mixed.to(value.dtype)))  # the widths differ, so the values are the shortcut
        x = x + self.mlp(self.norm2(x))
        return x


class ValueShortcutAttention(nn.Module):
    """Attention of one head that narrows tokens, with the values as its shortcut: [B, N, C] -> [B, N, D]."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.scale = dim**-0.5  # of the width that comes in, as in the official code
        self.qkv = nn.Linear(dim, 3 * out_dim, bias=False)
        self.proj = nn.Linear(out_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, D]."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        x = value + self.proj(F.scaled_dot_product_attention(query, key, value, scale=self.scale))
        return x


class TokenTransformer(nn.Module):
    """A transformer layer of one head that narrows tokens: [B, N, C] -> [B, N, D]."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = ValueShortcutAttention(dim, out_dim)
        self.norm2 = nn.LayerNorm(out_dim)
        self.mlp = Mlp(out_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, D]."""
        x = self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class TokensToTokens(nn.Module):
    """The stem: [B, C, H, W] -> [B, D, H/16, W/16] with the usual first window; (side, stride, padding) in pixels."""

    def __init__(
        self, in_chans: int, embed_dim: int, mixer: type[nn.Module], window: tuple[int, int, int] = WINDOW
    ) -> None:
        super().__init__()
        self.window = window
        self.attention1 = mixer(in_chans * window[0] ** 2, TOKEN_DIM)
        self.attention2 = mixer(TOKEN_DIM * 3 * 3, TOKEN_DIM)
        self.project = nn.Conv2d(TOKEN_DIM, embed_dim, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D, H/16, W/16]."""
        side, stride, padding = self.window
        height, width = ((length + 2 * padding - side) // stride + 1 for length in x.shape[-2:])
        x = self.attention1(F.unfold(x, side, stride=stride, padding=padding).transpose(1, 2))
        x = to_map(x, (height, width))
        x = self.attention2(F.unfold(x, 3, stride=2, padding=1).transpose(1, 2))
        x = self.project(to_map(x, ((height + 1) // 2, (width + 1) // 2)))
        return x


def sinusoids(count: int, dim: int) -> Tensor:
    """Make fixed positions [count, dim] (1706.03762): sines in even channels, cosines in odd ones."""
    channel = torch.arange(dim, dtype=torch.float64)
    angle = torch.arange(count, dtype=torch.float64)[:, None] / 10000 ** (2 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


class T2TViT(PlainViT):
    """A plain ViT on tokens made by :class:`TokensToTokens`."""

    def __init__(self, mixer: type[nn.Module], window: tuple[int, int, int] = WINDOW, **kwargs: Any) -> None:
        side, stride, padding = window
        padded = side - 2 * padding != 1  # else the window has H / stride places, rounded up, for any H
        embed = stem_embed(partial(TokensToTokens, mixer=mixer, window=window), 4 * stride, padded)
        fixed: dict[str, Any] = {"patch_size": 4 * stride, "qkv_bias": False, "norm_layer": nn.LayerNorm}
        super().__init__(embed_layer=embed, **{**fixed, **kwargs})

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """timm's initialisation, the official one of the embedding, and the fixed positions."""
        super().init_weights(mode, needs_reset=needs_reset)
        trunc_normal_(self.patch_embed.stem.project.weight, std=0.02)
        nn.init.zeros_(self.patch_embed.stem.project.bias)
        assert self.pos_embed is not None
        self.pos_embed.requires_grad_(False).data.copy_(sinusoids(*self.pos_embed.shape[1:]))


def load_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official checkpoint to our names; the last projection is a convolution here."""
    ours = {name.replace("tokens_to_token.", "patch_embed.stem."): value for name, value in state_dict.items()}
    weight = ours["patch_embed.stem.project.weight"]
    ours["patch_embed.stem.project.weight"] = weight.reshape(len(weight), TOKEN_DIM, 3, 3)
    return ours


def _variant(dim: int, depth: int, heads: int, ratio: float, mixer: type[nn.Module] = TokenPerformer) -> dict[str, Any]:
    return {"embed_dim": dim, "depth": depth, "num_heads": heads, "mlp_ratio": ratio, "mixer": mixer}


VARIANTS = {
    "t2t_vit_7": _variant(256, 7, 4, 2.0),
    "t2t_vit_10": _variant(256, 10, 4, 2.0),
    "t2t_vit_12": _variant(256, 12, 4, 2.0),
    "t2t_vit_14": _variant(384, 14, 6, 3.0),
    "t2t_vit_19": _variant(448, 19, 7, 3.0),
    "t2t_vit_24": _variant(512, 24, 8, 3.0),
    "t2t_vit_t_14": _variant(384, 14, 6, 3.0, TokenTransformer),
    "t2t_vit_t_19": _variant(448, 19, 7, 3.0, TokenTransformer),
    "t2t_vit_t_24": _variant(512, 24, 8, 3.0, TokenTransformer),
    "t2t_vit_14_resnext": _variant(384, 14, 32, 3.0),
    "t2t_vit_14_wide": _variant(768, 4, 12, 3.0),
}

register_variants(
    __name__, T2TViT, VARIANTS, kind="transformer", out_indices=3, paper_ids="arXiv:2101.11986", classifier="head"
)
