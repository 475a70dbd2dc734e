"""HAT-Net, vision transformers with hierarchical attention, and TransCNN, its first version (both arXiv:2106.03180).

Attention in two steps: within the cells of a grid, then from every place to the averages of coarser cells; a depthwise
inverted residual stands for the MLP. TransCNN has batch norm and a two-way downsampling, HAT-Net one-group norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn

from ssl_vit.backbones.layers import Size, init_linear, register_variants, rename_keys
from ssl_vit.backbones.pyramid import Pyramid, PyramidStage, drop_path_rates
from ssl_vit.backbones.windows import even_windows


def norm_of(dim: int, first: bool) -> nn.Module:
    """Build batch norm in the first version, one-group norm since."""
    return nn.BatchNorm2d(dim) if first else nn.GroupNorm(1, dim, eps=1e-6)


def attend(qkv: Sequence[Tensor], head_dim: int, first: bool, mask: Tensor | None = None) -> Tensor:
    """Attend between maps: q [B, D, h, w], k and v [B, D, h', w'] -> [B, D, h, w]; `mask` is True where it may look.

    The first version has no norm to calm the logits, and amplifies rounding until the output is another one: it keeps
    the authors' order of operations.
    """
    batch, _, *size = qkv[0].shape
    q, k, v = (t.reshape(batch, -1, head_dim, t.shape[2] * t.shape[3]).transpose(2, 3) for t in qkv)
    out: Tensor
    if first:
        logits = (q @ k.transpose(-2, -1)) * head_dim**-0.5
        out = (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(dim=-1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(2, 3).reshape(batch, -1, *size)


def to_cells(x: Tensor, cell: Size) -> Tensor:
    """Cut [B, D, n*h, m*w] into cells [B * n * m, D, h, w]."""
    batch, dim, height, width = x.shape
    x = x.reshape(batch, dim, height // cell[0], cell[0], width // cell[1], cell[1])
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, dim, *cell)


def from_cells(x: Tensor, size: Size) -> Tensor:
    """Put cells [B * n * m, D, h, w] together again: [B, D, n*h, m*w]."""
    _, dim, h, w = x.shape
    x = x.reshape(-1, size[0] // h, size[1] // w, dim, h, w)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, dim, *size)


class Attention(nn.Module):
    """Hierarchical attention over maps.

    Args:
        grid: side of a grid cell; 1 for plain attention over the whole map.
        reduction: side of the squares that are averaged for the second step.
    """

    def __init__(self, dim: int, head_dim: int, grid: int, reduction: int, first: bool) -> None:
        super().__init__()
        self.head_dim, self.grid, self.reduction, self.first = head_dim, grid, reduction, first
        self.norm = norm_of(dim, first)
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)
        if not first:  # in the published weights though nothing uses it: kept for its name, frozen as it learns nothing
            self.proj_norm = norm_of(dim, first).requires_grad_(False)
        if grid > 1:
            self.grid_norm, self.ds_norm = norm_of(dim, first), norm_of(dim, first)
            self.q, self.kv = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, 2 * dim, 1)

    def within_cells(self, qkv: Tensor) -> Tensor:
        """[B, 3 D, H, W] -> [B, D, H, W], attention inside each cell of an even grid, padded where it must be."""
        height, width = qkv.shape[-2:]
        cell = even_windows((height, width), (self.grid, self.grid))
        down, right = -height % cell[0], -width % cell[1]
        padded = (height + down, width + right)
        mask = None
        if down or right:
            inside = F.pad(qkv.new_ones(1, 1, height, width, dtype=torch.bool), (0, right, 0, down))
            mask = to_cells(inside, cell).flatten(2).repeat(qkv.shape[0], 1, 1)[:, None]  # [B * cells, 1, 1, h*w]
            qkv = F.pad(qkv, (0, right, 0, down))
        out = attend(to_cells(qkv, cell).chunk(3, dim=1), self.head_dim, self.first, mask)
        return from_cells(out, padded)[..., :height, :width]

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, D, H, W]."""
        qkv = self.qkv(self.norm(x))
        if self.grid == 1:
            return self.project(attend(qkv.chunk(3, dim=1), self.head_dim, self.first))
        x = self.grid_norm(x + self.within_cells(qkv))
        coarse = F.avg_pool2d(x, self.reduction, ceil_mode=True)  # cells cut by the border average what they have
        kv = self.kv(self.ds_norm(coarse)).chunk(2, dim=1)
        return self.project(x + attend((self.q(x), *kv), self.head_dim, self.first))

    def project(self, x: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, D, H, W]."""
        x = self.proj(x)
        return x


class InvertedResidual(nn.Module):
    """1 x 1 up, depthwise, 1 x 1 down."""

    def __init__(self, dim: int, hidden: int, kernel: int, first: bool) -> None:
        super().__init__()
        up, down = nn.Conv2d(dim, hidden, 1, bias=False), nn.Conv2d(hidden, dim, 1, bias=False)
        depthwise = nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden, bias=False)
        if first:
            self.conv1 = nn.Sequential(up, nn.BatchNorm2d(hidden), nn.SiLU())
            self.conv2 = nn.Sequential(depthwise, nn.BatchNorm2d(hidden), nn.SiLU())
        else:
            self.conv1 = nn.Sequential(norm_of(dim, first), up, nn.SiLU())
            self.conv2 = nn.Sequential(depthwise, nn.SiLU())
        self.conv3 = nn.Sequential(down, norm_of(dim, first))

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, D, H, W]."""
        x = self.conv3(self.conv2(self.conv1(x)))
        return x


class Block(nn.Module):
    """Hierarchical attention, then the inverted residual."""

    def __init__(self, attn: nn.Module, conv: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.attn, self.conv, self.drop_path = attn, conv, DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, D, H, W]."""
        x = x + self.drop_path(self.attn(x))
        x = x + self.drop_path(self.conv(x))
        return x


class Downsample(nn.Module):
    """To half the side by a strided convolution; TransCNN adds a max-pooled shortcut."""

    def __init__(self, in_dim: int, dim: int, first: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, 3, stride=2, padding=1)
        self.norm = norm_of(dim, first)
        self.shortcut: nn.Module | None = None
        if first:
            pool = nn.MaxPool2d(2, ceil_mode=True)
            self.shortcut = nn.Sequential(pool, nn.Conv2d(in_dim, dim, 1), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D, H / 2, W / 2]."""
        halved: Tensor = self.norm(self.conv(x))
        return halved if self.shortcut is None else F.silu(halved + self.shortcut(x))


class HATNet(Pyramid):
    """A stem of two convolutions, four stages, and a head on the mean of the last map, which has no norm.

    Args:
        depths, dims, expansions, grids, reductions, kernels: of each stage.
        head_dim: channels of an attention head.
        first: build the first version, TransCNN.
        img_size: taken for timm's sake; nothing in the family depends on it.
        head: `num_classes`, `global_pool`, `drop_rate` of :class:`Pyramid`.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int] = (64, 128, 320, 512),
        expansions: Sequence[int] = (8, 8, 4, 4),
        grids: Sequence[int] = (8, 7, 7, 1),
        kernels: Sequence[int] = (3, 3, 3, 3),
        reductions: Sequence[int] = (8, 4, 2, 1),
        head_dim: int = 64,
        first: bool = False,
        img_size: int | Size = 224,
        in_chans: int = 3,
        drop_rate: float = 0.2,
        drop_path_rate: float = 0.0,
        **head: Any,
    ) -> None:
        stages = []
        for i, (dim, rates) in enumerate(zip(dims, drop_path_rates(drop_path_rate, depths), strict=True)):
            blocks = []
            for rate in rates:
                attn = Attention(dim, head_dim, grids[i], reductions[i], first)
                conv = InvertedResidual(dim, expansions[i] * dim, kernels[i], first)
                blocks.append(Block(attn, conv, rate))
            stages.append(PyramidStage(Downsample(dims[i - 1], dim, first) if i else nn.Identity(), blocks))
        stem = nn.Sequential(
            *(nn.Conv2d(in_chans, 16, 3, stride=2, padding=1), norm_of(16, first), nn.SiLU()),
            nn.Conv2d(16, dims[0], 3, stride=2, padding=1),
        )
        super().__init__(stem, stages, dims, in_chans=in_chans, drop_rate=drop_rate, **head)
        init_linear(self, nn.Conv2d)


def load_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint of the authors' code, of either version, to our names."""
    return rename_keys(
        state_dict,
        (r"^patch_embed\.", "stem."),
        (r"^ds(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.downsample."),
        (r"\.downsample\.norm1\.", ".downsample.norm."),
        (r"\.downsample\.residual\.", ".downsample.shortcut.1."),
        (r"\.downsample\.norm2\.", ".downsample.shortcut.2."),
        (r"^blocks\.(\d)\.", r"stages.\1.blocks."),
        (r"^classifier\.1\.", "head.fc."),
    )


TRANSCNN: dict[str, Any] = {"first": True, "grids": (8, 8, 8, 1), "kernels": (5, 3, 5, 3), "img_size": 256}
VARIANTS: dict[str, dict[str, Any]] = {
    "transcnn_tiny": {
        **TRANSCNN, "depths": (2, 2, 4, 2), "dims": (64, 128, 256, 512), "expansions": (4, 4, 4, 4),
    },
    "transcnn_small": {
        **TRANSCNN, "depths": (3, 4, 8, 3), "dims": (64, 128, 256, 512), "expansions": (4, 4, 6, 6),
    },
    "transcnn_medium": {
        **TRANSCNN, "depths": (3, 4, 12, 3), "dims": (64, 128, 320, 640), "expansions": (4, 4, 6, 6),
    },
    "transcnn_large": {
        **TRANSCNN, "depths": (3, 4, 16, 3), "dims": (64, 128, 384, 768), "expansions": (4, 4, 6, 6),
    },
    "hat_net_tiny": {"depths": (2, 2, 6, 3), "dims": (48, 96, 240, 384), "head_dim": 48},
    "hat_net_small": {"depths": (2, 3, 8, 3)},
    "hat_net_medium": {"depths": (3, 6, 18, 3), "kernels": (5, 3, 5, 3)},
    "hat_net_large": {"depths": (3, 8, 27, 3), "dims": (64, 128, 320, 640)},
}  # fmt: skip
register_variants(
    __name__,
    HATNet,
    VARIANTS,
    kind="transformer",
    paper_ids="arXiv:2106.03180",
    first_conv="stem.0",
    classifier="head.fc",
)
