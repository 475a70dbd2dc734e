"""Colour operations on a whole batch of uint8 crops, on the device that trains, each crop with its own parameters.

The operations and their order are those of DINO (arXiv 2104.14294): colour jitter, grayscale, blur, solarize,
normalise. Jitter is torchvision's ColorJitter on float images; in float nothing is rounded between operations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.data.jitter import jittered, some
from ssl_vit.data.params import Column

_THRESHOLD = 128 / 255
_TILE = 2 * 3 * 224 * 224  # values that are done together on a CPU: few enough to stay in its cache


@torch.no_grad()
def augment(
    images: Tensor,
    params: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    kernels: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Apply the colours that each crop's parameters ask for, and normalise the batch.

    images: uint8 [N, 3, S, S] on any device; params: float32 [N, P], columns as ``params.Column`` names them. Keep
    them on the CPU: which crops need which operation is decided there, without waiting for the device. mean, std: of
    images in [0, 1]; kernels: on a CPU by numba, four times as quick, see `kernels`.
    Returns float32 [N, 3, S, S], in `out` if given.
    """
    out = torch.empty(images.shape, device=images.device) if out is None else out
    shift, scale = _standard(mean, std, images.device)
    if kernels and images.device.type == "cpu":
        from ssl_vit.data.kernels import coloured  # numba is an extra

        coloured(images, params, blur_weights(params[:, Column.SIGMA]), shift, scale, out)
        return out
    together = max(1, _TILE // images[0].numel()) if images.device.type == "cpu" else len(images)
    with torch.autocast(images.device.type, enabled=False):
        for rows, x in jittered(images, params, together):
            x = some(x, params[rows, Column.SIGMA], blur)
            x = some(x, params[rows, Column.SOLARIZE], lambda chosen, _: solarize(chosen))
            out.index_copy_(0, rows.to(out.device, non_blocking=True), torch.addcmul(shift, x, scale, out=x))
    return out


@torch.no_grad()
def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn uint8 [N, 3, H, W] into float32 of zero mean and unit deviation; mean, std: of images in [0, 1]."""
    unit = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    return torch.addcmul(*_standard(mean, std, images.device), unit)


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur images [n, 3, H, W] by Gaussians of sigma [n] pixels, along rows, then columns; edges are repeated."""
    height, width = x.shape[2:]
    weights = blur_weights(sigma).to(x.device, non_blocking=True)
    radius, taps = weights.shape[1] // 2, weights[..., None, None, None].unbind(1)  # each [n, 1, 1, 1]
    padded = F.pad(x, (radius, radius, radius, radius), mode="replicate")
    rows = _weighted(padded.unfold(3, width, 1).unbind(3), taps)
    return _weighted(rows.unfold(2, height, 1).unbind(2), taps).mT  # windows have their own side last


def _weighted(windows: Sequence[Tensor], taps: Sequence[Tensor]) -> Tensor:
    """The sum of windows, each times its tap."""
    total = windows[0] * taps[0]
    for window, tap in zip(windows[1:], taps[1:], strict=True):
        total.addcmul_(window, tap)
    return total


def blur_weights(sigma: Tensor) -> Tensor:
    """Make kernels [n, 2R + 1] of Gaussians with sigma [n] pixels, each cut at its own four sigma; 0 is no blur."""
    reach = (4 * sigma + 0.5).floor()
    radius = int(reach.amax())
    offset = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-6)[:, None]) ** 2) * (offset.abs() <= reach[:, None])
    return weights / weights.sum(1, keepdim=True)


def solarize(x: Tensor) -> Tensor:
    """Invert, in place, the values of images in [0, 1] that are at or above 128 of 255."""
    return x.addcmul_((x >= _THRESHOLD).to(x.dtype), 1 - 2 * x)  # exact, and quicker on a CPU than choosing


def _standard(mean: Sequence[float], std: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """What values are to be multiplied by, and what is then added: both [3, 1, 1], the latter first."""
    scale = 1 / torch.tensor(std).view(3, 1, 1)
    shift = -torch.tensor(mean).view(3, 1, 1) * scale
    return shift.to(device, non_blocking=True), scale.to(device, non_blocking=True)
