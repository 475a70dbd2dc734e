"""GLiT (2107.02960): a search gives each block of a plain ViT attention, a convolution along its tokens, or both.

Three heads of 64 channels a block: attention takes some (the global ones), a gated convolution over the sequence of
tokens, the class token first, takes the others (the local ones). The search also found the widths of both and of the
MLP, and the convolution's length. The Tiny network is the one that the authors published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from ssl_vit.backbones.layers import register_variants, rename_keys
from ssl_vit.backbones.plain import PlainViT

HEADS = 3  # of a block, global and local


class Found(NamedTuple):
    """What the search has found for a block."""

    attention: int  # heads of the three; the convolution has the others
    ratio: float  # of the MLP's width to the tokens'
    wider: float = 1  # how many times wider attention is than the channels that it takes
    inner: int = 1  # likewise the convolution
    kernel: int = 31  # tokens


class TokenConvolution(nn.Module):
    """A gated convolution along the tokens: [B, N, C] -> [B, N, C]."""

    def __init__(self, dim: int, inner: int, kernel: int) -> None:
        super().__init__()
        self.expand = nn.Conv1d(dim, 2 * inner, 1)
        self.depthwise = nn.Conv1d(inner, inner, kernel, padding=kernel // 2, groups=inner)
        self.norm = nn.BatchNorm1d(inner)
        self.project = nn.Conv1d(inner, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        x = F.glu(self.expand(x.transpose(1, 2)), dim=1)
        x = self.project(F.silu(self.norm(self.depthwise(x))))
        return x.transpose(1, 2)


class GlobalLocal(nn.Module):
    """Attention over the first heads' channels beside a convolution over the others': [B, N, D] -> [B, N, D]."""

    def __init__(self, dim: int, found: Found, qkv_bias: bool, attn_drop: float, proj_drop: float) -> None:
        super().__init__()
        if dim % HEADS:
            raise ValueError(f"embed_dim is {dim}; expected a multiple of {HEADS}, the heads of a block")
        head = dim // HEADS
        self.split = [found.attention * head, dim - found.attention * head]
        wide, local = self.split
        self.attention = self.convolution = None
        if wide:
            width = int(head * found.wider)
            self.attention = Attention(
                wide,
                found.attention,
                attn_head_dim=width,
                qkv_bias=qkv_bias,
                attn_drop=attn_drop,
                proj_drop=proj_drop,
            )
        if local:
            self.convolution = TokenConvolution(local, local * found.inner, found.kernel)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        branches = zip((self.attention, self.convolution), torch.split(x, self.split, dim=-1), strict=True)
        return torch.cat([branch(part) for branch, part in branches if branch is not None], dim=-1)


class Block(nn.Module):
    """A pre-norm block, [B, N, D] -> [B, N, D], of what was found for its depth."""

    def __init__(
        self,
        dim: int,
        depth: int,
        found: Sequence[Found],
        qkv_bias: bool,
        attn_drop: float,
        proj_drop: float,
        drop_path: float,
        norm_layer: type[nn.Module],
        **_: Any,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = GlobalLocal(dim, found[depth], qkv_bias, attn_drop, proj_drop)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * found[depth].ratio), drop=proj_drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        if attn_mask is not None or is_causal:
            raise ValueError("GLiT takes no attention mask")
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


def _found(given: Sequence[Any]) -> list[Found]:
    """What was found for each block, also from its numbers one after another."""
    if isinstance(given[0], Found):
        return list(given)
    return [Found(*numbers) for numbers in zip(*[iter(given)] * len(Found._fields), strict=True)]


class GLiT(PlainViT):
    """A plain ViT of the first `depth` blocks that a search has found, also as numbers one after another."""

    def __init__(self, found: Sequence[Found] | Sequence[float], depth: int | None = None, **kwargs: Any) -> None:
        found = _found(found)
        depth = len(found) if depth is None else depth
        if depth > len(found):
            raise ValueError(f"depth is {depth}, but {len(found)} blocks were found; it may be 1 to {len(found)}")
        super().__init__(block_fn=partial(Block, found=found), depth=depth, num_heads=HEADS, **kwargs)


OFFICIAL = (
    (r"^(blocks\.\d+)\.0\.", r"\1."),
    (r"\.attn\.(qkv|proj)\.", r".attn.attention.\1."),
    (r"\.net\.1\.", ".convolution.expand."),
    (r"\.net\.3\.conv\.", ".convolution.depthwise."),
    (r"\.net\.4\.", ".convolution.norm."),
    (r"\.net\.6\.", ".convolution.project."),
)


def load_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official checkpoint to our names."""
    return rename_keys(state_dict, *OFFICIAL)


TINY = (
    Found(3, ratio=4, wider=0.5),
    Found(0, ratio=4, inner=2, kernel=31),
    Found(1, ratio=6, inner=4),
    Found(3, ratio=4, wider=1),
    Found(0, ratio=4, inner=4, kernel=45),
    Found(1, ratio=6, inner=4),
    Found(3, ratio=2, wider=1),
    Found(1, ratio=2, inner=4),
    Found(0, ratio=4, inner=4, kernel=45),
    Found(3, ratio=4, wider=1),
    Found(0, ratio=4, inner=4, kernel=31),
    Found(3, ratio=6, wider=2),
)
VARIANTS: dict[str, dict[str, Any]] = {"glit_tiny_patch16_224": {"embed_dim": 192, "found": TINY}}

register_variants(
    __name__,
    GLiT,
    VARIANTS,
    kind="transformer",
    out_indices=3,
    paper_ids="arXiv:2107.02960",
    first_conv="patch_embed.proj",
    classifier="head",
)
