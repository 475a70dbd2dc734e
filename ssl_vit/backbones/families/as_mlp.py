"""AS-MLP, an axial shifted MLP architecture (arXiv:2107.08391).

Swin's layout with convolutions of 1 x 1 alone: a block moves five groups of channels by -2 to 2 places along rows, and
side by side along columns, and mixes channels after each. Norms are over a whole image, all places and channels.

No weight depends on the size of the image. What moves in from outside is zero, so that in small maps a larger share of
what is mixed is nothing: at a map of two places or less along an axis the outer groups see none of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from ssl_vit.backbones.layers import Size, init_linear, pad_to_multiple, register_variants, rename_keys
from ssl_vit.backbones.mixing import PatchConv, shift_groups
from ssl_vit.backbones.pyramid import Pyramid, PyramidStage, drop_path_rates


def norm_of(dim: int) -> nn.GroupNorm:
    """Build a norm over all places and channels of an image, with a scale and a bias for each channel."""
    return nn.GroupNorm(1, dim)


class AxialShift(nn.Module):
    """Channels are mixed, moved along rows and along columns, mixed again in each branch, summed and mixed."""

    def __init__(self, dim: int, shift_size: int) -> None:
        super().__init__()
        self.shift_size = shift_size
        self.conv1, self.norm1 = nn.Conv2d(dim, dim, 1), norm_of(dim)
        self.conv2_1, self.conv2_2 = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)
        self.norm2, self.conv3 = norm_of(dim), nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, D, H, W]."""
        x = F.gelu(self.norm1(self.conv1(x)))
        rows = F.gelu(self.conv2_1(shift_groups(x, self.shift_size, dim=3)))
        columns = F.gelu(self.conv2_2(shift_groups(x, self.shift_size, dim=2)))
        x = self.conv3(self.norm2(rows + columns))
        return x


class Block(nn.Module):
    """Axial shift, then an MLP, each with a shortcut and a norm before."""

    def __init__(self, dim: int, shift_size: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = norm_of(dim)
        self.axial_shift = AxialShift(dim, shift_size)
        self.norm2 = norm_of(dim)
        self.mlp = Mlp(dim, 4 * dim, use_conv=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, D, H, W]."""
        x = x + self.drop_path(self.axial_shift(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class NormedPatches(PatchConv):
    """Patches of 4 pixels are embedded and normed."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__(in_chans, dim, 4)
        self.norm = norm_of(dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D, H / 4, W / 4]."""
        x = self.norm(super().forward(x))
        return x


class Merging(nn.Module):
    """Each 2 x 2 cells become one: normed together, then a convolution of 1 x 1."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.norm = norm_of(4 * in_dim)
        self.reduction = nn.Conv2d(4 * in_dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D, H / 2, W / 2]."""
        x = pad_to_multiple(x, 2)
        batch, dim, height, width = x.shape
        x = x.reshape(batch, dim, height // 2, 2, width // 2, 2).permute(0, 5, 3, 1, 2, 4).flatten(1, 3)
        x = self.reduction(self.norm(x))
        return x


class ASMLP(Pyramid):
    """Patches, four stages, a norm and a head on the mean of the last map.

    Args:
        depths: of each stage.
        embed_dim: channels of the first stage; each later one has twice as many.
        shift_size: groups of channels, and places that they see along an axis; odd.
        img_size: taken for timm's sake; nothing in the family depends on it.
        head: `num_classes`, `global_pool`, `drop_rate` of :class:`Pyramid`.
    """

    def __init__(
        self,
        depths: Sequence[int],
        embed_dim: int = 96,
        shift_size: int = 5,
        img_size: int | Size = 224,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        **head: Any,
    ) -> None:
        if shift_size % 2 == 0:
            raise ValueError(f"shift_size is {shift_size}; groups move as far one way as the other, so it must be odd")
        dims = [embed_dim << i for i in range(len(depths))]
        stages = []
        for i, (dim, rates) in enumerate(zip(dims, drop_path_rates(drop_path_rate, depths), strict=True)):
            blocks = [Block(dim, shift_size, rate) for rate in rates]
            stages.append(PyramidStage(Merging(dims[i - 1], dim) if i else nn.Identity(), blocks))
        stem = NormedPatches(in_chans, embed_dim)
        super().__init__(stem, stages, dims, norm=norm_of(dims[-1]), in_chans=in_chans, **head)
        init_linear(self, nn.Conv2d)


def load_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint of the authors' code to our names."""
    return rename_keys(
        state_dict,
        (r"^patch_embed\.", "stem."),
        (r"^layers\.(\d)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
        (r"^layers\.", "stages."),
        (r"^head\.", "head.fc."),
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "asmlp_tiny": {"depths": (2, 2, 6, 2)},
    "asmlp_small": {"depths": (2, 2, 18, 2)},
    "asmlp_base": {"depths": (2, 2, 18, 2), "embed_dim": 128},
}
register_variants(
    __name__, ASMLP, VARIANTS, kind="mlp", paper_ids="arXiv:2107.08391", first_conv="stem.proj", classifier="head.fc"
)
