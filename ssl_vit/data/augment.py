"""Colour operations on a whole batch of uint8 crops, on the device that trains, each crop with its own parameters.

The operations and their order are those of DINO (arXiv 2104.14294): colour jitter, grayscale, blur, solarize,
normalise. Jitter is torchvision's ColorJitter on float images; in float nothing is rounded between operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations

import torch
from torch import Tensor

Operation = Callable[[Tensor, Tensor], Tensor]  # images [n, 3, S, S] in [0, 1], a value for each -> images

ORDERS = tuple(permutations(range(4)))  # of the four jitter operations; the `order` parameter is a row of it
_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as torchvision writes it
_THRESHOLD = 128 / 255


@torch.no_grad()
def augment(images: Tensor, params: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Apply each crop's parameters and normalise.

    images: uint8 [N, 3, S, S] on any device; params: float32 [N, P], the first columns being ``crops.COLOURS``. Keep
    them on the CPU: which crops need which operation is decided there, without waiting for the device. mean, std: of
    images in [0, 1]. Returns float32 [N, 3, S, S].
    """
    with torch.autocast(images.device.type, enabled=False):
        x = _unit(images)
        for operation, chosen, values in _schedule(params.cpu()):
            rows = chosen.nonzero().flatten()
            if len(rows):
                chosen_values = values[rows].to(x.device, non_blocking=True)
                rows = rows.to(x.device, non_blocking=True)
                x.index_copy_(0, rows, operation(x.index_select(0, rows), chosen_values))
        return _standardise(x, mean, std)


@torch.no_grad()
def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [N, 3, H, W] to float32 of zero mean and unit deviation; mean, std: of images in [0, 1]."""
    return _standardise(_unit(images), mean, std)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply."""
    return (x * factor).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean grey of the image."""
    return torch.lerp(luma(x).mean((2, 3), keepdim=True), x, factor).clamp_(0, 1)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image in grey."""
    return torch.lerp(luma(x), x, factor).clamp_(0, 1)


def hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of HSV by a fraction of the circle; value and chroma stay."""
    red, green, blue = x.unbind(1)
    value, chroma = x.amax(1), x.amax(1) - x.amin(1)
    scale = torch.where(chroma == 0, 1, chroma).reciprocal_()
    angle = torch.where(
        value == red,
        (green - blue) * scale,
        torch.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4),
    )
    corner = torch.arange(5, 0, -2, device=x.device).view(3, 1, 1)
    k = (angle[:, None] + (6 * turn + corner)).remainder_(6)  # each channel's distance along the hexagon
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


def gray(x: Tensor, _: Tensor) -> Tensor:
    """Grey in all three channels."""
    return luma(x).expand_as(x)


def blur(x: Tensor, weights: Tensor) -> Tensor:
    """Gaussian blur by the kernels [n, 2R + 1] of ``blur_weights``: two products with banded matrices."""
    n, channels, height, width = x.shape
    x = torch.bmm(x.reshape(n, channels * height, width), _band(weights, width).mT).view(x.shape)
    x = torch.bmm(x.mT.reshape(n, channels * width, height), _band(weights, height).mT)
    return x.view(n, channels, width, height).mT


def blur_weights(sigma: Tensor) -> Tensor:
    """Kernels [n, 2R + 1] of Gaussians with sigma [n] pixels, each cut at its own four sigma; sigma 0 is no blur."""
    reach = (4 * sigma + 0.5).floor()
    radius = int(reach.amax())
    offset = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-6)[:, None]) ** 2) * (offset.abs() <= reach[:, None])
    return weights / weights.sum(1, keepdim=True)


def _band(weights: Tensor, size: int) -> Tensor:
    """[n, 2R + 1] -> [n, size, size]: row i holds what each pixel gives to pixel i.

    Weights that fall outside of the image go to its edge pixels. A product with ones and zeros, because adding into
    place on a GPU would not be the same from run to run.
    """
    radius = weights.shape[1] // 2
    pixel = torch.arange(size, device=weights.device)
    source = (pixel + torch.arange(-radius, radius + 1, device=weights.device)[:, None]).clamp_(0, size - 1)
    place = (source[..., None] == pixel).to(weights.dtype)  # [2R + 1, size, size]
    return (weights @ place.flatten(1)).view(-1, size, size)


def solarize(x: Tensor, _: Tensor) -> Tensor:
    """Invert what is at or above 128 of 255."""
    return torch.where(x >= _THRESHOLD, 1 - x, x)


def luma(x: Tensor) -> Tensor:
    """[n, 3, H, W] -> [n, 1, H, W]."""
    return x[:, 0:1].mul(_LUMA[0]).add_(x[:, 1:2], alpha=_LUMA[1]).add_(x[:, 2:3], alpha=_LUMA[2])


_JITTER: tuple[tuple[Operation, float], ...] = ((brightness, 1.0), (contrast, 1.0), (saturation, 1.0), (hue, 0.0))


def _schedule(params: Tensor) -> Iterator[tuple[Operation, Tensor, Tensor]]:
    """Each operation with the crops it is for (bool [N]) and what it needs of each crop [N, …], in order."""
    order = torch.tensor(ORDERS)[params[:, 4].long()]  # [N, 4]
    for position in range(4):
        for number, (operation, neutral) in enumerate(_JITTER):
            factor = params[:, number]
            yield operation, (order[:, position] == number) & (factor != neutral), factor.view(-1, 1, 1, 1)
    yield gray, params[:, 5] > 0, params[:, 5]
    yield blur, params[:, 6] > 0, blur_weights(params[:, 6])
    yield solarize, params[:, 7] > 0, params[:, 7]


def _unit(images: Tensor) -> Tensor:
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _standardise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    centre = torch.tensor(mean, dtype=x.dtype).view(3, 1, 1).to(x.device, non_blocking=True)
    spread = torch.tensor(std, dtype=x.dtype).view(3, 1, 1).to(x.device, non_blocking=True)
    return x.sub_(centre).div_(spread)
