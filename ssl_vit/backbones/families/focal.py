"""Focal Transformer (arXiv 2107.00641): windows attend to what is near in detail and to what is far in summary.

A window of 7 x 7 tokens sees itself, the ring of 3 tokens around it, and the windows around it, each pooled to one
token. The map is taken to wrap around for the ring. In the fast version (focalv2) it sees the 128 tokens nearest to
its centre instead of ring and self, and the 128 nearest pooled windows, with positions from a small MLP over offsets.

At other sizes than the built one maps are padded to multiples of 7; the fast version never picks padding.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.helpers import to_2tuple
from timm.layers.norm import LayerNorm2d
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from ssl_vit.backbones.layers import PatchEmbed, Size, merge_heads, register_variants, rename_keys, split_heads
from ssl_vit.backbones.pyramid import SwinLayout
from ssl_vit.backbones.windows import MapBlock, RelativePositionBias, from_windows, to_windows

WINDOW = (7, 7)  # cells
RING = 3  # cells around a window
NEAREST = 128  # tokens that a window of the fast version sees at each level
BLOCK = 57  # cells around a window's centre that are searched for them, more in narrow maps
OUTSIDE = -100.0  # logit of pooled windows outside the map


def _patch_indices() -> list[int]:
    """Places of a window's own 49 tokens, then of its ring's, in the 13 x 13 cells around it.

    The ring is four corners as large as the window; cells in two corners count twice, as in the official code.
    """

    def square(top: int, left: int) -> list[int]:
        return [
            row * (WINDOW[1] + 2 * RING) + column
            for row in range(top, top + WINDOW[0])
            for column in range(left, left + WINDOW[1])
        ]

    own = square(RING, RING)
    corners = ((2 * RING, 2 * RING), (2 * RING, 0), (0, 2 * RING), (0, 0))
    return own + [place for corner in corners for place in square(*corner) if place not in own]


class FocalAttention(nn.Module):
    """Windows attend to what :meth:`see` gives them of the map's tokens and of the pooled windows."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.pool = nn.Linear(WINDOW[0] * WINDOW[1], 1)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def see(self, tokens: Tensor, pooled: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """[B, H, W, C] of the padded map, [B, h, w, C] of its windows -> [B, h * w, N, C], bias [h * w, heads, 49, N].

        `size`: of the map without padding.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]."""
        batch, height, width, dim = x.shape
        x = F.pad(x, (0, 0, 0, -width % WINDOW[1], 0, -height % WINDOW[0]))
        grid = (x.shape[1] // WINDOW[0], x.shape[2] // WINDOW[1])
        pooled = self.pool(to_windows(x, WINDOW).transpose(1, 2)).view(batch, *grid, dim)
        pooled = F.linear(pooled, self.qkv.weight[dim:], self.qkv.bias[dim:])
        q, kv = self.qkv(x).split((dim, 2 * dim), dim=-1)
        kv, bias = self.see(kv, pooled, (height, width))
        k, v = kv.reshape(-1, kv.shape[2], 2, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q = split_heads(to_windows(q, WINDOW), self.heads)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.repeat(batch, 1, 1, 1))
        x = self.proj(from_windows(merge_heads(out), WINDOW, (height, width)))
        return x


class RingAttention(FocalAttention):
    """Each window sees itself, its ring (unless `ring` is False) and the `focus` x `focus` pooled windows around it."""

    patch: Tensor
    index: Tensor

    def __init__(self, dim: int, heads: int, focus: int, ring: bool) -> None:
        super().__init__(dim, heads)
        self.focus, self.ring = focus, ring
        self.position = RelativePositionBias(WINDOW, heads)
        patch = torch.tensor(_patch_indices() if ring else _patch_indices()[:49])
        self.register_buffer("patch", patch, persistent=False)
        if ring:
            neighbors = torch.zeros(1, heads, 49, len(patch) - 49)
            self.relative_position_bias_table_to_neighbors = nn.Parameter(trunc_normal_(neighbors, std=0.02))
        high, wide = (side + focus - 1 for side in WINDOW)
        windows = torch.zeros(heads, high * wide)
        self.relative_position_bias_table_to_windows = nn.Parameter(trunc_normal_(windows, std=0.02))
        rows, columns = (torch.arange(side)[:, None] - torch.arange(focus) + focus - 1 for side in WINDOW)
        index = rows[:, None, :, None] * wide + columns[None, :, None, :]
        self.register_buffer("index", index.view(49, focus**2), persistent=False)

    def near(self, size: Size, grid: Size) -> Tensor:
        """Where the tokens of each window and its ring are in a map of `size`, [windows, N]."""
        wide = WINDOW[1] + 2 * RING
        rows, columns = (
            (most * torch.arange(count, device=self.patch.device)[:, None] + place - RING) % side  # a map wraps around
            for most, count, place, side in zip(
                WINDOW, grid, (self.patch // wide, self.patch % wide), size, strict=True
            )
        )
        return (rows[:, None] * size[1] + columns).flatten(0, 1)

    def far(self, grid: Size) -> Tensor:
        """Where the pooled windows around each are in a `grid` with half a focus of margin, [windows, focus**2]."""
        sides = (torch.arange(side, device=self.patch.device)[:, None] for side in grid)
        rows, columns = (side + torch.arange(self.focus, device=self.patch.device) for side in sides)
        places = rows[:, None, :, None] * (grid[1] + self.focus - 1) + columns[None, :, None]
        return places.flatten(2).flatten(0, 1)

    def see(self, tokens: Tensor, pooled: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """See :meth:`FocalAttention.see`."""
        (height, width), grid = tokens.shape[1:3], (pooled.shape[1], pooled.shape[2])
        margin, far = (self.focus // 2,) * 4, self.far(grid)
        places = torch.cat((self.near((height, width), grid), height * width + far), dim=1)
        every = torch.cat((tokens.flatten(1, 2), F.pad(pooled, (0, 0, *margin)).flatten(1, 2)), dim=1)
        inside = F.pad(tokens.new_ones(grid), margin).flatten()[far][:, None, None]  # [windows, 1, 1, focus * focus]
        hidden = self.relative_position_bias_table_to_windows[:, self.index] + OUTSIDE * (1 - inside)
        biases = [self.position(WINDOW)] + ([self.relative_position_bias_table_to_neighbors] if self.ring else [])
        bias = torch.cat([*(bias.expand(len(far), -1, -1, -1) for bias in biases), hidden], dim=3)
        return every.index_select(1, places.flatten()).view(tokens.shape[0], *places.shape, -1), bias


def _points(rows: int, columns: int, device: torch.device | None) -> Tensor:
    """[rows * columns, 2]."""
    sides = (torch.arange(side, device=device) for side in (rows, columns))
    return torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, 1)


def nearest(size: Size, device: torch.device | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the tokens nearest to the centre of each window of a map, [windows, N], and their offsets, [windows, N, 2].

    Then the same for windows. Both are numbered in the map padded to whole windows; no token is padding. Which of
    several equally near ones is taken depends on torch's topk: on the CPU it takes what the official code does.
    """
    grid = [math.ceil(side / most) for side, most in zip(size, WINDOW, strict=True)]
    windows = _points(grid[0], grid[1], device)
    scale = torch.tensor(WINDOW, device=device)
    centres = windows * scale + scale // 2
    # a block of the map around each centre that is sure to hold them; all of the map at 224 pixels
    block = [min(side, BLOCK + 2 * math.ceil(NEAREST / other)) for side, other in zip(size, size[::-1], strict=True)]
    last = torch.tensor([side - part for side, part in zip(size, block, strict=True)], device=device)
    start = (centres - torch.tensor(block, device=device) // 2).clamp(min=0).minimum(last)
    offset = (centres - start)[:, None] - _points(block[0], block[1], device)
    offset = _closest(offset, size[0] * size[1])[1]
    token = centres[:, None] - offset
    far, far_offset = _closest(windows[:, None] - windows, len(windows))
    return token[..., 0] * grid[1] * WINDOW[1] + token[..., 1], offset, far, far_offset * scale


def _closest(offset: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The places of the shortest of [windows, N, 2], up to 128 of `count`, and they themselves."""
    place = (-offset.square().sum(-1).float()).topk(min(NEAREST, count), dim=1).indices
    return place, offset.gather(1, place[..., None].expand(-1, -1, 2))


class NearestAttention(FocalAttention):
    """Each window sees the tokens and the pooled windows nearest to its centre (the fast version)."""

    near: Tensor
    near_offset: Tensor
    far: Tensor
    far_offset: Tensor

    def __init__(self, dim: int, heads: int, built: Size) -> None:
        super().__init__(dim, heads)
        self.built = built
        hidden = dim // heads
        self.positions = nn.ModuleList(
            nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, heads)) for _ in ("near", "far")
        )
        for name, value in zip(("near", "near_offset", "far", "far_offset"), nearest(built), strict=True):
            self.register_buffer(name, value, persistent=False)

    def see(self, tokens: Tensor, pooled: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """See :meth:`FocalAttention.see`."""
        near, near_offset, far, far_offset = (
            (self.near, self.near_offset, self.far, self.far_offset)
            if size == self.built
            else nearest(size, tokens.device)
        )
        most = torch.tensor([tokens.shape[1] - 1, tokens.shape[2] - 1], device=tokens.device)  # any offset's
        every = _points(2 * tokens.shape[1] - 1, 2 * tokens.shape[2] - 1, tokens.device) - most
        within = (_points(*WINDOW, tokens.device) - torch.tensor(WINDOW, device=tokens.device) // 2)[:, None]
        bias = []
        for position, offset in zip(self.positions, (near_offset, far_offset), strict=True):
            table = position(every.to(tokens.dtype))  # each offset once, though many tokens share it
            place = offset[:, None] + within + most  # [windows, 49, N, 2]
            bias.append(F.embedding(place[..., 0] * (2 * tokens.shape[2] - 1) + place[..., 1], table))
        seen = torch.cat((tokens.flatten(1, 2)[:, near], pooled.flatten(1, 2)[:, far]), dim=2)
        return seen, torch.cat(bias, dim=2).permute(0, 3, 1, 2)


def overlapping(in_dim: int, dim: int, patch: int) -> nn.Module:
    """Embed patches that overlap their neighbours by almost half, [B, C, H, W] -> [B, D, H / patch, W / patch]."""
    conv = nn.Conv2d(in_dim, dim, 2 * patch - 1, patch, patch // 2)
    return nn.Sequential(OrderedDict(proj=conv, norm=LayerNorm2d(dim, eps=1e-5)))


class Focal(SwinLayout):
    """Swin's layout, with patches that are layer-normed at every stage.

    Args:
        heads: of each stage.
        focus: pooled windows along each side of what a window sees, for each stage; None for the fast version.
        overlap: patches overlap their neighbours, 7 pixels with stride 4, then 3 cells with stride 2.
        img_size: that the weights are made for, pixels; any other size runs.
        layout: of :class:`SwinLayout`.
    """

    def __init__(
        self,
        heads: Sequence[int] = (3, 6, 12, 24),
        focus: Sequence[int] | None = (7, 5, 3, 1),
        overlap: bool = False,
        img_size: int | tuple[int, int] = 224,
        **layout: Any,
    ) -> None:
        def block(stage: int, place: int, dim: int, drop_path: float) -> nn.Module:
            height, width = (math.ceil(side / (4 << stage)) for side in to_2tuple(img_size))
            if focus is None:
                return MapBlock(dim, NearestAttention(dim, heads[stage], (height, width)), drop_path)
            ring = min(height, width) > WINDOW[0]  # a map of one window has nothing around it
            return MapBlock(dim, RingAttention(dim, heads[stage], focus[stage], ring), drop_path)

        patches = overlapping if overlap else PatchEmbed
        super().__init__(block, partial(patches, patch=2), partial(patches, patch=4), **layout)


def load_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint of microsoft/Focal-Transformer to our names."""
    buffers = re.compile(r"attn\.(relative_position_index|valid_ind|topk_|window_coords)")
    return rename_keys(
        {name: weight for name, weight in weights.items() if not buffers.search(name)},
        (r"^patch_embed\.", "stem."),
        (r"^layers\.(\d)\.downsample", lambda match: f"stages.{int(match[1]) + 1}.downsample"),
        (r"^layers\.", "stages."),
        (r"\.pool_layers\.0\.", ".attn.pool."),
        (r"attn\.(relative_position_bias_table)$", r"attn.position.\1"),
        (r"table_to_windows\.0$", "table_to_windows"),
        (r"\.coord2rpb_all\.", ".positions."),
        (r"^head\.(weight|bias)", r"head.fc.\1"),
    )


_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)},
}
_KINDS: dict[str, dict[str, Any]] = {
    "focal_{}_patch4_window7_224": {},
    "focal_{}_useconv_patch4_window7_224": {"overlap": True},
    "focalv2_{}_useconv_patch4_window7_224": {"overlap": True, "focus": None},
}

VARIANTS = {name.format(size): _SIZES[size] | kind for size in _SIZES for name, kind in _KINDS.items()}

register_variants(
    __name__,
    Focal,
    VARIANTS,
    kind="transformer",
    paper_ids="arXiv:2107.00641",
    first_conv="stem.proj",
    classifier="head.fc",
)
