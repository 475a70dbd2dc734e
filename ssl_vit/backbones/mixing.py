"""Mixing of tokens without attention: shifts of channels, filters and matrices over a grid, at any size of the grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from ssl_vit.backbones.layers import Size, pad_to_multiple


class PatchConv(nn.Module):
    """Each square of `patch` cells becomes a vector; a side that is no multiple of it is padded with zeros."""

    def __init__(self, in_chans: int, dim: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(in_chans, dim, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """Embed [B, C, H, W] as [B, D, H / patch, W / patch]."""
        x = self.proj(pad_to_multiple(x, self.patch))
        return x


def shift_cycle(x: Tensor, taps: int, dim: int) -> Tensor:
    """Let each channel i of [B, H, W, D] look `(i + taps // 2) % taps - taps // 2` places ahead along `dim` (1 or 2).

    What lies outside is zero. It is a depthwise convolution with one tap a channel that isn't 0, which was quicker than
    slices or a gather, forth and back.
    """
    channels = x.shape[-1]
    places = (torch.arange(channels, device=x.device) + taps // 2) % taps
    kernel = F.one_hot(places, taps).to(x.dtype)
    kernel = kernel[:, None, :, None] if dim == 1 else kernel[:, None, None, :]
    padding = (taps // 2, 0) if dim == 1 else (0, taps // 2)
    return F.conv2d(x.permute(0, 3, 1, 2), kernel, padding=padding, groups=channels).permute(0, 2, 3, 1)


def shift_groups(x: Tensor, groups: int, dim: int) -> Tensor:
    """Move equal groups of channels of [B, D, H, W] by -r, …, r places along `dim` (2 or 3), 2 r + 1 = `groups`.

    What comes in from outside is zero; the last group is smaller where `groups` doesn't divide D.
    """
    reach, side = groups // 2, x.shape[dim]
    padding = (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0)
    parts = F.pad(x, padding).chunk(groups, dim=1)
    return torch.cat([part.narrow(dim, 2 * reach - i, side) for i, part in enumerate(parts)], dim=1)


def shift_quarters(x: Tensor) -> Tensor:
    """Move the quarters of the channels of [B, H, W, D] a place down, up, right and left; the border keeps its own."""
    quarter = x.shape[-1] // 4
    down, up, right, left = x.tensor_split((quarter, 2 * quarter, 3 * quarter), dim=-1)
    down = torch.cat([down[:, :1], down[:, :-1]], dim=1)
    up = torch.cat([up[:, 1:], up[:, -1:]], dim=1)
    right = torch.cat([right[:, :, :1], right[:, :, :-1]], dim=2)
    left = torch.cat([left[:, :, 1:], left[:, :, -1:]], dim=2)
    return torch.cat([down, up, right, left], dim=-1)


class ThreeWays(nn.Module):
    """Rows, columns and channels are mixed side by side, then summed with weights that the image chooses a channel.

    A family says in :meth:`along` how it mixes along the two axes.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp_c = nn.Linear(dim, dim, bias=False)
        self.reweight = Mlp(dim, dim // 4, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def along(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mix [B, H, W, D] along each of the two axes: two maps [B, H, W, D]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, D] to [B, H, W, D]."""
        h, w = self.along(x)
        c = self.mlp_c(x)
        weights = self.reweight((h + w + c).mean((1, 2)))
        weights = weights.reshape(x.shape[0], 1, 1, x.shape[-1], 3).softmax(dim=-1)
        x = self.proj(h * weights[..., 0] + w * weights[..., 1] + c * weights[..., 2])
        return x


def axis_resampling(built: int, size: int, like: Tensor) -> Tensor:
    """Interpolate linearly what is known at `built` cells at `size` cells of the same length: a matrix [size, built].

    Rows sum to 1; fewer cells are averages of those that they cover, so that none is skipped.

    >>> axis_resampling(2, 4, Tensor())
    tensor([[1.0000, 0.0000],
            [0.7500, 0.2500],
            [0.2500, 0.7500],
            [0.0000, 1.0000]])
    """
    step = built / size
    centres = (torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) * step - 0.5
    cells = torch.arange(built, device=like.device, dtype=like.dtype)
    weights = (1 - (cells - centres.clamp(0, built - 1)[:, None]).abs() / max(1.0, step)).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


def grid_resampling(built: Size, size: Size, like: Tensor) -> Tensor:
    """Interpolate what is known on a grid on one of another `size`, row by row: [h * w, H * W]."""
    rows, columns = (axis_resampling(was, now, like) for was, now in zip(built, size, strict=True))
    return torch.kron(rows, columns)


def periodic_resampling(built: int, size: int, like: Tensor) -> Tensor:
    """Interpolate linearly what is known at `built` points of a circle at `size` points: a matrix [size, built].

    The first point stays where it is.
    """
    places = torch.arange(size, device=like.device, dtype=like.dtype) * (built / size)
    gaps = (torch.arange(built, device=like.device, dtype=like.dtype) - places[:, None]).abs()
    return (1 - torch.minimum(gaps, built - gaps)).clamp(min=0)


def half_resampling(built: int, size: int, like: Tensor) -> Tensor:
    """As :func:`periodic_resampling` for the half that a real signal's spectrum needs: [size // 2 + 1, built // 2 + 1].

    A frequency beyond the last that is known has the last one's value.
    """
    places = torch.arange(size // 2 + 1, device=like.device, dtype=like.dtype) * (built / size)
    known = torch.arange(built // 2 + 1, device=like.device, dtype=like.dtype)
    return (1 - (known - places.clamp(max=built // 2)[:, None]).abs()).clamp(min=0)


def cells(img_size: Sequence[int], stride: int) -> Size:
    """The grid of an image (height, width) in pixels, padded to whole cells."""
    return -(-img_size[0] // stride), -(-img_size[1] // stride)
