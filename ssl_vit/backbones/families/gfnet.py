"""GFNet, global filter networks, and the pyramid GFNet-H (arXiv:2107.00645).

A block takes the map to the frequencies of its rows and columns, multiplies each channel by a learned complex filter,
and takes it back; an MLP follows, with one shortcut around both. That is a convolution as large as the map, cyclic at
its borders.

Filters are learned for one grid. On another they are interpolated over frequency, in cycles per token, which keeps
the shape of the convolution in tokens and the response to a constant exactly; what reaches far is damped. Positions are
interpolated bilinearly. The transform is computed in float32, also in mixed precision: half precision can't hold its
sums, nor sizes that are no power of two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers.drop import DropPath
from timm.layers.helpers import to_2tuple
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm2d
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from ssl_vit.backbones.layers import Size, init_linear, no_autocast, register_variants, rename_keys, resize_positions
from ssl_vit.backbones.mixing import PatchConv, cells, half_resampling, periodic_resampling
from ssl_vit.backbones.pyramid import NHWCStage, Pyramid, drop_path_rates


class GlobalFilter(nn.Module):
    """Each channel of a map [B, H, W, D] is multiplied, frequency by frequency, by a learned filter."""

    def __init__(self, dim: int, built: Size) -> None:
        super().__init__()
        self.built = built
        self.complex_weight = nn.Parameter(0.02 * torch.randn(built[0], built[1] // 2 + 1, dim, 2))

    def sized(self, size: Size, dtype: torch.dtype) -> Tensor:
        """Return the filter for a map of `size`, [H, W // 2 + 1, D, 2]."""
        weight = self.complex_weight.to(dtype)
        if size == self.built:
            return weight
        rows = periodic_resampling(self.built[0], size[0], weight)
        columns = half_resampling(self.built[1], size[1], weight)
        return torch.einsum("ru,cv,uvdk->rcdk", rows, columns, weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]."""
        size, dtype = (x.shape[1], x.shape[2]), torch.promote_types(x.dtype, torch.float32)
        with no_autocast(x):
            spectrum = torch.fft.rfft2(x.to(dtype), dim=(1, 2), norm="ortho")
            spectrum = spectrum * torch.view_as_complex(self.sized(size, dtype).contiguous())
            filtered: Tensor = torch.fft.irfft2(spectrum, s=size, dim=(1, 2), norm="ortho")
        return filtered.to(x.dtype)


class Block(nn.Module):
    """Filter and MLP with one shortcut around both, the branch scaled by `gamma` where there is one."""

    def __init__(self, dim: int, built: Size, drop_path: float, init_values: float | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.filter = GlobalFilter(dim, built)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)
        self.gamma = None if init_values is None else nn.Parameter(torch.full((dim,), init_values))

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]."""
        branch = self.mlp(self.norm2(self.filter(self.norm1(x))))
        x = x + self.drop_path(branch if self.gamma is None else self.gamma * branch)
        return x


class PlacedPatches(PatchConv):
    """Patches are embedded, and a learned position is added to each."""

    def __init__(self, in_chans: int, dim: int, patch: int, built: Size) -> None:
        super().__init__(in_chans, dim, patch)
        self.built = built
        self.pos_embed = nn.Parameter(torch.zeros(1, built[0] * built[1], dim))
        trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D, H / patch, W / patch]."""
        x = super().forward(x)
        positions = resize_positions(self.pos_embed, self.built, (x.shape[2], x.shape[3]))
        return x + positions.transpose(1, 2).reshape(1, *x.shape[1:])


class GFNet(Pyramid):
    """Patches with positions, one stage or four, a norm and a head on the mean of the last map.

    Args:
        depths, dims: of each stage.
        patch_size: pixels a patch of the first stage.
        init_values: that the scale of each branch starts with; None for no scale.
        img_size: that filters and positions are made for, pixels; they're resized for any other.
        head: `num_classes`, `global_pool`, `drop_rate` of :class:`Pyramid`.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        patch_size: int = 16,
        init_values: float | None = None,
        img_size: int | Size = 224,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        **head: Any,
    ) -> None:
        sizes = [cells(to_2tuple(img_size), patch_size << i) for i in range(len(depths))]
        stages = []
        for i, (dim, rates) in enumerate(zip(dims, drop_path_rates(drop_path_rate, depths), strict=True)):
            blocks = [Block(dim, sizes[i], rate, init_values) for rate in rates]
            stages.append(NHWCStage(PatchConv(dims[i - 1], dim, 2) if i else nn.Identity(), blocks))
        stem, norm = PlacedPatches(in_chans, dims[0], patch_size, sizes[0]), LayerNorm2d(dims[-1], eps=1e-6)
        super().__init__(stem, stages, dims, stride=patch_size, norm=norm, in_chans=in_chans, **head)
        init_linear(self)


def load_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint of the authors' code to our names."""
    return rename_keys(
        state_dict,
        (r"^pos_embed$", "stem.pos_embed"),
        (r"^patch_embed\.(?:0\.)?proj\.", "stem.proj."),
        (r"^patch_embed\.(\d)\.", r"stages.\1.downsample."),
        (r"^blocks\.(\d+)\.(?=\d)", r"stages.\1.blocks."),
        (r"^blocks\.", "stages.0.blocks."),
        (r"^head\.", "head.fc."),
    )


PYRAMID: dict[str, Any] = {"patch_size": 4, "init_values": 1e-5}
PLAIN: dict[str, dict[str, Any]] = {
    "gfnet_ti": {"depths": (12,), "dims": (256,)},
    "gfnet_xs": {"depths": (12,), "dims": (384,)},
    "gfnet_s": {"depths": (19,), "dims": (384,)},
    "gfnet_b": {"depths": (19,), "dims": (512,)},
}
PYRAMIDS: dict[str, dict[str, Any]] = {
    "gfnet_h_ti": {"depths": (3, 3, 10, 3), "dims": (64, 128, 256, 512), **PYRAMID},
    "gfnet_h_s": {"depths": (3, 3, 10, 3), "dims": (96, 192, 384, 768), **PYRAMID},
    "gfnet_h_b": {"depths": (3, 3, 27, 3), "dims": (96, 192, 384, 768), **PYRAMID},
}
for variants, levels in ((PLAIN, 1), (PYRAMIDS, 4)):
    register_variants(
        __name__,
        GFNet,
        variants,
        kind="mlp",
        out_indices=levels,
        paper_ids="arXiv:2107.00645",
        first_conv="stem.proj",
        classifier="head.fc",
    )
