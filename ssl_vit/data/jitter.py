"""torchvision's ColorJitter on a batch of crops, each of which has its own factors and its own order of operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations

import torch
from torch import Tensor

from ssl_vit.data.params import JITTER, UNCHANGED, Column

OPERATIONS = (Column.BRIGHTNESS, Column.CONTRAST, Column.SATURATION, Column.HUE)
ORDERS = tuple(permutations(map(int, OPERATIONS)))  # the parameter ORDER is a row of it
LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as torchvision writes it
BASES = torch.tensor([(0.0, 0.0), (0.0, 1.0), (1.0, 0.0)])  # of brightness, contrast, saturation; see `blend`
_TINY = 1e-30  # a chroma of nothing, which nothing is divided by
_NEUTRAL = UNCHANGED[JITTER]
_HUE_PLACE = torch.tensor([order.index(Column.HUE) for order in ORDERS])
_BLENDS = torch.tensor([[kind for kind in order if kind != Column.HUE] for order in ORDERS])  # [24, 3]


def jittered(images: Tensor, params: Tensor, together: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows [n] and their colours jittered or grey, float32 [n, 3, S, S] in [0, 1], at most so many together.

    params: float32 [N, P] on the CPU; see `augment`. Each part is float32 [n, 3, S, S] in [0, 1].
    """
    pixels = images.permute(0, 2, 3, 1)  # as they lie in memory: whole crops are copied
    for turned, group in _groups(params):
        for rows in torch.split(group, together):
            x = pixels.index_select(0, rows.to(images.device, non_blocking=True)).permute(0, 3, 1, 2)
            x = x.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
            yield (
                rows,
                some(_jitter(x, params[rows], turned), params[rows, Column.GRAY], lambda chosen, _: gray(chosen)),
            )


def blend(x: Tensor, factor: Tensor, base: Tensor) -> Tensor:
    """Change brightness, contrast or saturation: mix with black, with the mean grey, or with the image in grey.

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
    is_red, is_green = _equal(value, red), _equal(value, green)
    is_green.addcmul_(is_green, is_red, value=-1)
    is_blue = (1 - is_red).sub_(is_green)
    angle = (green - blue).mul_(is_red).addcmul_(blue - red, is_green).addcmul_(red - green, is_blue)
    angle.div_(chroma.clamp_min(_TINY)).add_(is_green, alpha=2).sub_(is_blue, alpha=2)
    angle.add_(6 * turn.view(-1, 1, 1))  # on a hexagon of length 6: red at 0, green at 2, blue at -2
    angle.sub_((angle / 6).round_(), alpha=6)  # now between -3 and 3
    away = torch.stack([2 - angle.abs(), angle.add(1).abs_().sub_(1), angle.sub(1).abs_().sub_(1)], 1)
    return torch.addcmul(least[:, None], away.clamp_(0, 1), chroma[:, None], out=away)


def _equal(a: Tensor, b: Tensor) -> Tensor:
    """1.0 where they are equal, else 0.0."""
    return torch.eq(a, b, out=torch.empty_like(a))


def gray(x: Tensor) -> Tensor:
    """Make all three channels grey, [n, 3, H, W]."""
    return luma(x).repeat(1, 3, 1, 1)


def luma(x: Tensor) -> Tensor:
    """Weigh the channels of [n, 3, H, W] into one grey channel, [n, 1, H, W]."""
    return x[:, 0:1].mul(LUMA[0]).add_(x[:, 1:2], alpha=LUMA[1]).add_(x[:, 2:3], alpha=LUMA[2])


def _groups(params: Tensor) -> Iterator[tuple[int | None, Tensor]]:
    """Crops alike in when their hue is turned: before which of three blends, 3 = after them, 4 = never; or None of it.

    What a group does can be done to all of its crops at once, as the three blends are one operation.
    """
    turned = _HUE_PLACE[params[:, Column.ORDER].long()].masked_fill(params[:, Column.HUE] == 0, 4)
    turned[(params[:, JITTER] == params.new_tensor(_NEUTRAL)).all(1)] = 5
    for place in range(6):
        rows = (turned == place).nonzero().flatten()
        if len(rows):
            yield None if place == 5 else place, rows


def _jitter(x: Tensor, params: Tensor, turned: int | None) -> Tensor:
    """torchvision's ColorJitter, each crop in its own order."""
    if turned is None:
        return x
    kinds = _BLENDS[params[:, Column.ORDER].long()]  # [n, 3]
    factors, bases = params.gather(1, kinds), BASES[kinds]
    moved = [values.to(x.device, non_blocking=True) for values in (factors, bases, params[:, Column.HUE])]
    for position in range(4):
        if position == turned:
            x = hue(x, moved[2])
        if position < 3:
            x = blend(x, moved[0][:, position], moved[1][:, position])
    return x


def some(x: Tensor, values: Tensor, operation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Apply an operation to those crops whose value [n], on the CPU, is not 0; the others stay."""
    chosen = values.nonzero().flatten()
    if len(chosen) in (0, len(x)):
        return operation(x, values) if len(chosen) else x
    rows = chosen.to(x.device, non_blocking=True)
    return x.index_copy_(0, rows, operation(x.index_select(0, rows), values[chosen]))
