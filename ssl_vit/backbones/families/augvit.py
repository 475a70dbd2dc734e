"""Aug-ViT (2106.15941): learned shortcuts beside attention and MLP keep tokens from collapsing onto one another.

With T shortcuts C_t a residual sum is ``3 / (T + 2) * (x + f(norm(x)) + sum of act(C_t norm(x)))``. C_t is a full
matrix (``linear``) or block-circulant (``circulant``): 4 x 4 blocks, each a circular convolution over a quarter of the
channels, which holds 4 D weights and costs D log D by FFT.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_vit.backbones.layers import no_autocast, register_variants
from ssl_vit.backbones.plain import PlainViT

BLOCKS = 4  # circulant blocks along each side of a shortcut's matrix


class BlockCirculant(nn.Module):
    """A linear layer [..., D] -> [..., D] of 4 x 4 circulant blocks; `weight` holds their first columns."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % BLOCKS:
            raise ValueError(f"width {dim} isn't a multiple of {BLOCKS}, the circulant blocks along a side")
        bound = 1 / math.sqrt(dim)  # as torch's linear layer with D inputs
        self.weight = nn.Parameter(torch.empty(BLOCKS, BLOCKS, dim // BLOCKS).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(dim).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        size = self.weight.shape[-1]
        with no_autocast(x):  # in half precision FFT takes powers of two only
            spectrum = torch.fft.rfft(x.float().reshape(*x.shape[:-1], BLOCKS, size))
            spectrum = torch.einsum("...jf,ijf->...if", spectrum, torch.fft.rfft(self.weight.float()))
            y: Tensor = torch.fft.irfft(spectrum, n=size).flatten(-2) + self.bias
        return y.to(x.dtype)


def full(dim: int) -> nn.Module:
    """Build a linear layer [..., D] -> [..., D]."""
    return nn.Linear(dim, dim)


SHORTCUTS = {"linear": full, "circulant": BlockCirculant}


class AugmentedBlock(Block):
    """timm's ViT block with learned shortcuts beside attention and beside the MLP, [B, N, D] -> [B, N, D]."""

    def __init__(self, dim: int, num_heads: int, kind: str, count: int, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, **kwargs)
        self.shortcuts1 = nn.ModuleList(SHORTCUTS[kind](dim) for _ in range(count))
        self.shortcuts2 = nn.ModuleList(SHORTCUTS[kind](dim) for _ in range(count))
        self.shortcut_act = nn.GELU() if count > 1 else nn.Identity()  # the official ablation with one has none
        self.scale = 3 / (count + 2)

    def join(self, x: Tensor, branch: Tensor, normed: Tensor, shortcuts: nn.ModuleList) -> Tensor:
        """The residual sum of `x`, what a branch gave and what the shortcuts give; all [B, N, D]."""
        x = x + branch
        for shortcut in shortcuts:
            x = x + self.shortcut_act(shortcut(normed))
        return self.scale * x

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        normed = self.norm1(x)
        mixed = self.attn(normed, attn_mask=attn_mask, is_causal=is_causal)
        x = self.join(x, self.drop_path1(self.ls1(mixed)), normed, self.shortcuts1)
        normed = self.norm2(x)
        return self.join(x, self.drop_path2(self.ls2(self.mlp(normed))), normed, self.shortcuts2)


class AugViT(PlainViT):
    """A plain ViT of augmented blocks; with no shortcuts it is DeiT."""

    def __init__(self, shortcut: str = "linear", shortcut_count: int = 0, **kwargs: Any) -> None:
        block = partial(AugmentedBlock, kind=shortcut, count=shortcut_count) if shortcut_count else Block
        super().__init__(block_fn=block, **kwargs)


def load_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official checkpoint to our names; the index tables of circulant layers are dropped."""

    def renamed(found: re.Match[str]) -> str:
        branch, second = found.groups()
        return f".shortcuts{1 if branch else 2}.{1 if second else 0}."

    ours = {}
    for name, value in state_dict.items():
        name = re.sub(r"\.augs(_attn)?(2)?\.(?:0\.)?", renamed, name)
        if name.endswith(".weight_list"):
            ours[name.removesuffix("_list")] = value.reshape(BLOCKS, BLOCKS, -1)
        elif not name.endswith(".index_matrix"):
            ours[name] = value
    return ours


SMALL = {"embed_dim": 384, "num_heads": 6}
VARIANTS: dict[str, dict[str, Any]] = {
    "augvit_small": SMALL,
    "augvit_small_linear": {**SMALL, "shortcut": "linear", "shortcut_count": 1},
    "augvit_small_linear2": {**SMALL, "shortcut": "linear", "shortcut_count": 2},
    "augvit_small_circulant2": {**SMALL, "shortcut": "circulant", "shortcut_count": 2},
    "augvit_base_circulant2": {"shortcut": "circulant", "shortcut_count": 2},
}

register_variants(
    __name__,
    AugViT,
    VARIANTS,
    kind="transformer",
    out_indices=3,
    paper_ids="arXiv:2106.15941",
    mean=IMAGENET_INCEPTION_MEAN,
    std=IMAGENET_INCEPTION_STD,
    first_conv="patch_embed.proj",
    classifier="head",
)
