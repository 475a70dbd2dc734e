"""CCS-MLP, a mixer whose token mixing is circulant and channel-specific (arXiv:2106.14882).

An MLP-Mixer in which a channel's tokens, row by row, are mixed by one circulant matrix: what a token gives another
depends on how far apart they stand in that order alone. So a group of channels learns as many numbers as there are
tokens instead of their square, and each group its own. The product is computed by a Fourier transform, in float32.

Kernels are learned for one grid. For another they are interpolated along both axes as maps on a torus, the first tap
kept in its place, and scaled so that the sum of a smooth one is kept; a kernel reaches the same share of the image, not
the same number of tokens. The paper's own sizes could not be read; these are the Mixer's.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.helpers import to_2tuple
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from ssl_vit.backbones.layers import Size, init_linear, no_autocast, register_variants
from ssl_vit.backbones.mixing import PatchConv, cells, periodic_resampling
from ssl_vit.backbones.pyramid import NHWCStage, Pyramid, drop_path_rates
from ssl_vit.backbones.windows import MapBlock


class CirculantMixing(nn.Module):
    """Tokens [B, H, W, D], row by row, are convolved cyclically with a learned kernel for each group of channels.

    Args:
        dim: D.
        groups: of neighbouring channels that share a kernel; divides D.
        built: (height, width) of the grid that kernels are made for.
    """

    def __init__(self, dim: int, groups: int, built: Size) -> None:
        super().__init__()
        self.built = built
        self.weight = nn.Parameter(0.02 * torch.randn(groups, built[0] * built[1]))

    def sized(self, size: Size, dtype: torch.dtype) -> Tensor:
        """Return the kernels for a grid of `size`, [groups, H * W]."""
        weight = self.weight.to(dtype)
        if size == self.built:
            return weight
        rows, columns = (periodic_resampling(was, now, weight) for was, now in zip(self.built, size, strict=True))
        kernels = torch.einsum("ru,cv,guv->grc", rows, columns, weight.reshape(-1, *self.built)).flatten(1)
        return kernels * (weight.shape[1] / kernels.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]."""
        size, dtype = (x.shape[1], x.shape[2]), torch.promote_types(x.dtype, torch.float32)
        with no_autocast(x):
            tokens = x.to(dtype).flatten(1, 2)
            count = tokens.shape[1]
            kernels = self.sized(size, dtype).mT  # repeated as real numbers: ONNX repeats no complex ones
            kernels = torch.fft.rfft(kernels.repeat_interleave(x.shape[-1] // kernels.shape[1], dim=1), dim=0)
            mixed: Tensor = torch.fft.irfft(torch.fft.rfft(tokens, dim=1) * kernels, n=count, dim=1)
        return mixed.reshape(x.shape).to(x.dtype)


class CCSMLP(Pyramid):
    """Patches, blocks at one resolution, a norm and a head on the mean of the last map.

    Args:
        depth, embed_dim: of the blocks.
        groups: kernels a block.
        patch_size: pixels.
        img_size: that the kernels are made for, pixels; they're interpolated for any other.
        head: `num_classes`, `global_pool`, `drop_rate` of :class:`Pyramid`.
    """

    def __init__(
        self,
        depth: int,
        embed_dim: int,
        groups: int = 8,
        patch_size: int = 16,
        img_size: int | Size = 224,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        **head: Any,
    ) -> None:
        if embed_dim % groups:
            raise ValueError(f"groups is {groups}, embed_dim is {embed_dim}; groups must divide it")
        built = cells(to_2tuple(img_size), patch_size)
        (rates,) = drop_path_rates(drop_path_rate, (depth,))
        blocks = [MapBlock(embed_dim, CirculantMixing(embed_dim, groups, built), rate) for rate in rates]
        stem, stages = PatchConv(in_chans, embed_dim, patch_size), [NHWCStage(nn.Identity(), blocks)]
        norm = LayerNorm2d(embed_dim, eps=1e-5)
        super().__init__(stem, stages, [embed_dim], stride=patch_size, norm=norm, in_chans=in_chans, **head)
        init_linear(self)


VARIANTS: dict[str, dict[str, Any]] = {
    "ccs_mlp_s16": {"depth": 8, "embed_dim": 512},
    "ccs_mlp_b16": {"depth": 12, "embed_dim": 768},
}
register_variants(
    __name__,
    CCSMLP,
    VARIANTS,
    kind="mlp",
    out_indices=1,
    paper_ids="arXiv:2106.14882",
    first_conv="stem.proj",
    classifier="head.fc",
)
