"""Colour operations on a whole batch of uint8 crops, on the device that trains, each crop with its own parameters.

The operations and their order are those of DINO (arXiv 2104.14294): colour jitter, grayscale, blur, solarize,
normalise. Jitter is torchvision's ColorJitter on float images; in float nothing is rounded between operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

ORDERS = tuple(permutations(range(4)))  # of the four jitter operations; the `order` parameter is a row of it
_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as torchvision writes it
_THRESHOLD = 128 / 255
_TILE = 3 * 224 * 224  # values that are done together on a CPU, so that they stay in its cache
_NEUTRAL = (1.0, 1.0, 1.0, 0.0)
BASES = torch.tensor([(0.0, 0.0), (0.0, 1.0), (1.0, 0.0)])  # of brightness, contrast, saturation; see `blend`
_HUE_PLACE = torch.tensor([order.index(3) for order in ORDERS])
_BLENDS = torch.tensor([[kind for kind in order if kind != 3] for order in ORDERS])  # [24, 3]


@torch.no_grad()
def augment(images: Tensor, params: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Apply each crop's parameters and normalise.

    images: uint8 [N, 3, S, S] on any device; params: float32 [N, P], the first columns being ``crops.COLOURS``. Keep
    them on the CPU: which crops need which operation is decided there, without waiting for the device. mean, std: of
    images in [0, 1]. Returns float32 [N, 3, S, S].
    """
    out = torch.empty(images.shape, device=images.device)
    size = max(1, _TILE // images[0].numel()) if images.device.type == "cpu" else len(images)
    with torch.autocast(images.device.type, enabled=False):
        for turned, group in _groups(params):
            for rows in torch.split(group, size):
                place = rows.to(out.device, non_blocking=True)
                x = _unit(images.index_select(0, place))
                x = _finish(_jitter(x, params[rows], turned), params[rows])
                out.index_copy_(0, place, _standardise(x, mean, std))
    return out


@torch.no_grad()
def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [N, 3, H, W] to float32 of zero mean and unit deviation; mean, std: of images in [0, 1]."""
    return _standardise(_unit(images), mean, std)


def blend(x: Tensor, factor: Tensor, base: Tensor) -> Tensor:
    """Brightness, contrast or saturation: a mixture with black, the mean grey of the image, or the image in grey.

    base: [n, 2], how much of the grey image and of its mean the other part of the mixture has: a row of ``BASES``.
    """
    grey = luma(x)
    grey_share, mean_share = base.view(-1, 2, 1, 1, 1).unbind(1)
    mean = grey.mean((2, 3), keepdim=True)
    other = grey.mul_(grey_share).add_(mean * mean_share)
    return torch.lerp(other, x, factor.view(-1, 1, 1, 1), out=x).clamp_(0, 1)


def hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of HSV by a fraction of the circle, [n]; value and chroma stay.

    Which channel is largest is told by factors 0 and 1: on a CPU choosing pixel by pixel takes several times as long.
    """
    red, green, blue = x.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - least
    scale = _equal(chroma, torch.zeros_like(chroma)).add_(chroma).reciprocal_()
    is_red, is_green = _equal(value, red), _equal(value, green)
    is_green.addcmul_(is_green, is_red, value=-1)
    is_blue = (1 - is_red).sub_(is_green)
    angle = (green - blue).mul_(is_red).addcmul_(blue - red, is_green).addcmul_(red - green, is_blue)
    angle.mul_(scale).add_(is_green, alpha=2).add_(is_blue, alpha=4)
    corner = torch.arange(3, -2, -2, device=x.device).view(3, 1, 1)
    far = angle[:, None] + (6 * turn.view(-1, 1, 1, 1) + corner)  # of a channel from where it is largest, on a hexagon
    far.sub_((far / 6).round_(), alpha=6)  # of length 6: now between -3 and 3
    return far.abs_().sub_(1).clamp_(0, 1).mul_(chroma[:, None]).add_(least[:, None])


def _equal(a: Tensor, b: Tensor) -> Tensor:
    """1.0 where they are equal, else 0.0."""
    return torch.eq(a, b, out=torch.empty_like(a))


def gray(x: Tensor) -> Tensor:
    """Grey in all three channels."""
    return luma(x).repeat(1, 3, 1, 1)


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of sigma [n] pixels on the CPU, along rows, then columns; edges are repeated."""
    height, width = x.shape[2:]
    weights = blur_weights(sigma).to(x.device, non_blocking=True)
    radius, taps = weights.shape[1] // 2, weights.T[..., None, None, None]  # [2R + 1, n, 1, 1, 1]
    padded = F.pad(x, (radius, radius, radius, radius), mode="replicate")
    rows = padded[..., :width] * taps[0]
    for shift in range(1, len(taps)):
        rows.addcmul_(padded[..., shift : shift + width], taps[shift])
    out = rows[:, :, :height] * taps[0]
    for shift in range(1, len(taps)):
        out.addcmul_(rows[:, :, shift : shift + height], taps[shift])
    return out


def blur_weights(sigma: Tensor) -> Tensor:
    """Kernels [n, 2R + 1] of Gaussians with sigma [n] pixels, each cut at its own four sigma; sigma 0 is no blur."""
    reach = (4 * sigma + 0.5).floor()
    radius = int(reach.amax())
    offset = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-6)[:, None]) ** 2) * (offset.abs() <= reach[:, None])
    return weights / weights.sum(1, keepdim=True)


def solarize(x: Tensor) -> Tensor:
    """Invert what is at or above 128 of 255."""
    return x.addcmul_((x >= _THRESHOLD).to(x.dtype), 1 - 2 * x)  # exact, and quicker on a CPU than choosing


def luma(x: Tensor) -> Tensor:
    """[n, 3, H, W] -> [n, 1, H, W]."""
    return x[:, 0:1].mul(_LUMA[0]).add_(x[:, 1:2], alpha=_LUMA[1]).add_(x[:, 2:3], alpha=_LUMA[2])


def _groups(params: Tensor) -> Iterator[tuple[int | None, Tensor]]:
    """Crops alike in when their hue is turned: before which of three blends, 3 = after them, 4 = never; or None of it.

    What a group does can be done to all of its crops at once, as the three blends are one operation.
    """
    turned = _HUE_PLACE[params[:, 4].long()].masked_fill(params[:, 3] == 0, 4)
    turned[(params[:, :4] == params.new_tensor(_NEUTRAL)).all(1)] = 5
    for place in range(6):
        rows = (turned == place).nonzero().flatten()
        if len(rows):
            yield None if place == 5 else place, rows


def _jitter(x: Tensor, params: Tensor, turned: int | None) -> Tensor:
    """torchvision's ColorJitter, each crop in its own order."""
    if turned is None:
        return x
    kinds = _BLENDS[params[:, 4].long()]  # [n, 3]
    factors, bases = params.gather(1, kinds), BASES[kinds]
    moved = [values.to(x.device, non_blocking=True) for values in (factors, bases, params[:, 3])]
    for position in range(4):
        if position == turned:
            x = hue(x, moved[2])
        if position < 3:
            x = blend(x, moved[0][:, position], moved[1][:, position])
    return x


def _finish(x: Tensor, params: Tensor) -> Tensor:
    """Grey, blur and solarize, of those that ask for it."""
    x = _some(x, params[:, 5], lambda some, _: gray(some))
    x = _some(x, params[:, 6], blur)
    return _some(x, params[:, 7], lambda some, _: solarize(some))


def _some(x: Tensor, values: Tensor, operation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The operation on those crops whose value [n], on the CPU, is not 0."""
    chosen = values.nonzero().flatten()
    if len(chosen) in (0, len(x)):
        return operation(x, values) if len(chosen) else x
    rows = chosen.to(x.device, non_blocking=True)
    return x.index_copy_(0, rows, operation(x.index_select(0, rows), values[chosen]))


def _unit(images: Tensor) -> Tensor:
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _standardise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    centre = torch.tensor(mean, dtype=x.dtype).view(3, 1, 1).to(x.device, non_blocking=True)
    spread = torch.tensor(std, dtype=x.dtype).view(3, 1, 1).to(x.device, non_blocking=True)
    return x.sub_(centre).div_(spread)
