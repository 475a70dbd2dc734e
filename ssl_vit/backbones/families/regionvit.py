"""RegionViT (arXiv 2106.02689): regional tokens see the whole image, local ones see their region.

Every block first lets all regional tokens attend to each other, then each regional token and the window of local
tokens below it, with the same weights. Regional tokens are classified; the map of local tokens is for detectors.

At other sizes than the built one, the regions at the right and the bottom are padded, and attention skips the padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm2d
from timm.models import checkpoint
from torch import Tensor, nn

from ssl_vit.backbones.layers import attend, init_linear, pad_to_multiple, register_variants, rename_keys
from ssl_vit.backbones.pyramid import Pyramid, drop_path_rates
from ssl_vit.backbones.windows import RelativePositionBias, from_windows, to_windows

PATCH = 4  # pixels of a local token
HIDDEN = -3e4  # a logit that softmax makes 0, within the range of half precision


class Regions(NamedTuple):
    """The two maps that a stage works on; a regional token stands for `window` x `window` local ones."""

    regional: Tensor  # [B, D, H / window, W / window]
    local: Tensor  # [B, D, H, W]


class Stem(nn.Module):
    """One convolution for the regional tokens; three small ones (`deep`) or a large one for the local ones."""

    def __init__(self, in_chans: int, dim: int, window: int, deep: bool) -> None:
        super().__init__()
        self.patch = PATCH * window
        self.regional = nn.Conv2d(in_chans, dim, self.patch, self.patch)
        self.local: nn.Module = nn.Conv2d(in_chans, dim, 2 * PATCH, PATCH, PATCH - 1)
        if deep:
            self.local = nn.Sequential(
                nn.Conv2d(in_chans, dim // 4, 3, 2, 1),
                LayerNorm2d(dim // 4, eps=1e-5),
                nn.GELU(),
                nn.Conv2d(dim // 4, dim // 2, 3, 2, 1),
                LayerNorm2d(dim // 2, eps=1e-5),
                nn.GELU(),
                nn.Conv2d(dim // 2, dim, 3, 1, 1),
            )

    def forward(self, x: Tensor) -> Regions:
        """Images [B, C, H, W] to the first maps."""
        return Regions(self.regional(pad_to_multiple(x, self.patch)), self.local(x))


class Attention(nn.Module):
    """Attention among tokens, with relative positions where a bias is asked for."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = (window, window)
        self.position = RelativePositionBias(self.window, heads)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def bias(self, hidden: Tensor | None) -> Tensor:
        """[windows or 1, heads, 1 + N, 1 + N], none for the regional token, which comes first; `hidden`: see stage."""
        bias = F.pad(self.position(self.window), (1, 0, 1, 0))
        return bias if hidden is None else bias + hidden

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v) if bias is None else attend(q, k, v, bias)
        x = self.proj(out.transpose(1, 2).flatten(2))
        return x


class Block(nn.Module):
    """Regional tokens attend to each other, then each with its window; then an MLP."""

    def __init__(self, dim: int, heads: int, window: int, drop_path: float) -> None:
        super().__init__()
        self.norm0 = nn.LayerNorm(dim, eps=1e-6)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, regions: int, hidden: Tensor | None) -> Tensor:
        """[B * regions, 1 + N, D], regional tokens first -> the same."""
        first = x[:, 0].view(-1, regions, x.shape[-1])
        first = first + self.drop_path(self.attn(self.norm0(first)))
        x = torch.cat((first.reshape(-1, 1, x.shape[-1]), x[:, 1:]), dim=1)
        x = x + self.drop_path(self.attn(self.norm1(x), self.attn.bias(hidden)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class RegionStage(nn.Module):
    """Both maps downsampled alike, then blocks over regions; `peg` adds a depthwise convolution after the first."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[Block], window: int, peg: nn.Module | None) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.window = window
        self.peg = peg
        self.grad_checkpointing = False

    def pack(self, x: Regions) -> Tensor:
        """[B * regions, 1 + window * window, D]; the local map padded to the regions' size."""
        (high, wide), (height, width) = x.regional.shape[2:], x.local.shape[2:]
        local = F.pad(x.local, (0, wide * self.window - width, 0, high * self.window - height))
        windows = to_windows(local.permute(0, 2, 3, 1), (self.window, self.window))
        first = x.regional.permute(0, 2, 3, 1).reshape(-1, 1, windows.shape[-1])
        return torch.cat((first, windows), dim=1)

    def unpack(self, x: Tensor, like: Regions) -> Regions:
        """The inverse of :meth:`pack`, for maps of the sides of `like`."""
        (high, wide), (height, width) = like.regional.shape[2:], like.local.shape[2:]
        window = (self.window, self.window)
        local = from_windows(x[:, 1:], window, (high * self.window, wide * self.window))[:, :height, :width]
        first = x[:, 0].view(-1, high, wide, x.shape[-1])
        return Regions(first.permute(0, 3, 1, 2), local.permute(0, 3, 1, 2))

    def hidden(self, x: Regions) -> Tensor | None:
        """What hides padding, to add to logits: [B * regions, 1, 1 + N, 1 + N]; None when nothing is padded.

        Two tokens of a region see each other when both are in rows of the map, if some of its rows are padding, or
        both in columns of the map, if some columns are. So a region padded both ways sees some padding, as it does in
        the official code, whose nets with windows of 14 work on such a region in their last stage at 224 pixels.
        """
        high, wide = x.regional.shape[2:]
        rows, columns = (
            torch.arange(regions * self.window, device=x.local.device).view(regions, self.window) < side
            for regions, side in zip((high, wide), x.local.shape[2:], strict=True)
        )
        if rows.shape[0] * self.window == x.local.shape[2] and columns.shape[0] * self.window == x.local.shape[3]:
            return None
        tokens = (high, wide, self.window, self.window)
        seen = torch.zeros((), dtype=torch.bool, device=x.local.device)
        whole = torch.ones(high, wide, dtype=torch.bool, device=x.local.device)
        for inside, padded in (
            (rows[:, None, :, None], ~rows.all(1)[:, None]),
            (columns[None, :, None], ~columns.all(1)[None]),
        ):
            inside = F.pad(inside.expand(tokens).flatten(2), (1, 0), value=True)  # regional tokens are always inside
            seen = seen | (inside[..., :, None] & inside[..., None, :] & padded[..., None, None])
            whole = whole & ~padded
        seen = (seen | whole[..., None, None]).flatten(0, 1)[:, None]
        return torch.zeros_like(seen, dtype=x.local.dtype).masked_fill(~seen, HIDDEN).repeat(len(x.local), 1, 1, 1)

    def forward(self, x: Regions) -> Regions:
        """Both maps to the next level's."""
        x = Regions(*map(self.downsample, x))
        tokens, hidden = self.pack(x), self.hidden(x)
        regions = x.regional.shape[2] * x.regional.shape[3]
        for i, block in enumerate(self.blocks):
            arguments = (tokens, regions, hidden)
            tokens = checkpoint(block, *arguments) if self.grad_checkpointing else block(*arguments)
            if i == 0 and self.peg is not None:
                maps = self.unpack(tokens, x)
                tokens = self.pack(Regions(*(part + self.peg(part) for part in maps)))
        return self.unpack(tokens, x)


class RegionNorm(LayerNorm2d):
    """A layer norm of the regional map, which is what the head sees, or of a map by itself."""

    def forward(self, x: Regions | Tensor) -> Tensor:
        """[B, D, H, W]."""
        x = super().forward(x.regional if isinstance(x, Regions) else x)
        return x


class RegionViT(Pyramid):
    """Two stems, four stages of local tokens at strides 4 to 32, a linear head on the mean regional token.

    Args:
        embed_dim: channels of the first stage; each later one has twice as many.
        depths, heads: of each stage.
        window: local tokens along each side of a region.
        deep_stem: three 3 x 3 convolutions for local tokens instead of one 8 x 8.
        peg: positions by a depthwise convolution after the first block of each stage.
        img_size: taken for timm's sake; nothing in the family depends on it.
        head: `num_classes`, `global_pool`, `drop_rate` of :class:`Pyramid`.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        embed_dim: int = 64,
        depths: Sequence[int] = (2, 2, 8, 2),
        heads: Sequence[int] = (2, 4, 8, 16),
        window: int = 7,
        deep_stem: bool = True,
        peg: bool = False,
        **head: Any,
    ) -> None:
        dims = [embed_dim * 2**i for i in range(4)]
        stages = []
        for i, (dim, rates) in enumerate(zip(dims, drop_path_rates(drop_path_rate, depths), strict=True)):
            downsample: nn.Module = nn.Identity()
            if i:
                conv = nn.Conv2d(dims[i - 1], dim, 3, 2, 1, groups=dims[i - 1])
                downsample = nn.Sequential(LayerNorm2d(dims[i - 1], eps=1e-5), nn.GELU(), conv)
            blocks = [Block(dim, heads[i], window, rate) for rate in rates]
            positions = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False) if peg else None
            stages.append(RegionStage(downsample, blocks, window, positions))
        stem, norm = Stem(in_chans, embed_dim, window, deep_stem), RegionNorm(dims[-1], eps=1e-6)
        super().__init__(stem, stages, dims, norm=norm, in_chans=in_chans, **head)
        init_linear(self)

    def level(self, x: Regions, norm: bool) -> Tensor:
        """The local map of a stage."""
        return super().level(x.local, norm)


def load_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint of IBM/RegionViT to our names; norms of maps are kept as vectors, offsets in Swin's order."""
    renamed = rename_keys(
        weights,
        (r"\.proj_cls\.", ".proj."),  # two names of one tensor
        (r"^patch_embed\.proj", "stem.local"),
        (r"^cls_token\.proj", "stem.regional"),
        (r"^layers\.(\d)\.block\.0\.proj", r"stages.\1.downsample"),
        (r"^layers\.(\d)\.block\.(\d+)", lambda match: f"stages.{match[1]}.blocks.{int(match[2]) - 1}"),
        (r"^layers\.(\d)\.peg", r"stages.\1.peg"),
        (r"^head\.(weight|bias)", r"head.fc.\1"),
    )
    return {
        name.replace("rel_pos", "position.relative_position_bias_table"): (
            _swin_order(weight) if name.endswith("rel_pos") else weight.flatten() if len(weight) == 1 else weight
        )
        for name, weight in renamed.items()
    }


def _swin_order(table: Tensor) -> Tensor:
    """[heads, offsets] to [offsets, heads], from the official order of offsets to Swin's.

    There the offset of key from query is in place (offset + window // 2) mod (2 window - 1) of each axis (negative
    places count from the end); here the offset of query from key is in place offset + window - 1.
    """
    side = round(table.shape[1] ** 0.5)
    window = (side + 1) // 2
    places = (window - 1 - torch.arange(side) + window // 2) % side
    return table.view(-1, side, side)[:, places][:, :, places].flatten(1).T.contiguous()


_TINY = {"embed_dim": 64, "depths": (2, 2, 8, 2), "heads": (2, 4, 8, 16)}
_SMALL = {"embed_dim": 96, "depths": (2, 2, 8, 2), "heads": (3, 6, 12, 24)}
_MEDIUM = {"embed_dim": 96, "depths": (2, 2, 14, 2), "heads": (3, 6, 12, 24), "deep_stem": False}
_BASE = {"embed_dim": 128, "depths": (2, 2, 14, 2), "heads": (4, 8, 16, 32), "deep_stem": False}

VARIANTS: dict[str, dict[str, Any]] = {
    "regionvit_tiny_224": _TINY,
    "regionvit_small_224": _SMALL,
    "regionvit_medium_224": _MEDIUM,
    "regionvit_base_224": _BASE,
    "regionvit_small_w14_224": {**_SMALL, "window": 14},
    "regionvit_small_w14_peg_224": {**_SMALL, "window": 14, "peg": True},
    "regionvit_base_w14_224": {**_BASE, "window": 14},
    "regionvit_base_w14_peg_224": {**_BASE, "window": 14, "peg": True},
}

register_variants(
    __name__,
    RegionViT,
    VARIANTS,
    kind="transformer",
    paper_ids="arXiv:2106.02689",
    first_conv="stem.regional",
    classifier="head.fc",
)
