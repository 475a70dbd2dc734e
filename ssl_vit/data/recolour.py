"""Colour jitter as one affine map of red, green and blue a crop: nearly the exact one's colours, much quicker.

What is left out: values are clamped once, at the end, and the hue is turned on a circle about the grey axis, where the
exact one goes round HSV's hexagon.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ssl_vit.data.jitter import BASES, LUMA, ORDERS
from ssl_vit.data.params import JITTER, Column

_THIN = 4  # every so many rows and columns tell a crop's mean colour
_ORDERS = torch.tensor(ORDERS)


def recoloured(images: Tensor, params: Tensor, together: int) -> Iterator[tuple[Tensor, Tensor]]:
    """As `jitter.jittered`."""
    mean = images[:, :, ::_THIN, ::_THIN].to(torch.float32).mean((2, 3)).cpu() / 255
    maps = colour_maps(params, mean).to(images.device, non_blocking=True)
    for rows in torch.split(torch.arange(len(images)), together):
        some = slice(int(rows[0]), int(rows[-1]) + 1)
        x = images[some].contiguous().to(torch.float32).flatten(2)
        x = torch.baddbmm(maps[some, :, 3:], maps[some, :, :3] / 255, x)
        yield rows, x.view(-1, *images.shape[1:]).clamp_(0, 1)


def colour_maps(params: Tensor, mean: Tensor) -> Tensor:
    """What becomes of red, green and blue: [n, 3, 4], of which the last column is added.

    mean: [n, 3], of each crop's red, green and blue in [0, 1]; contrast is relative to it.
    """
    kinds, factors = _ORDERS[params[:, Column.ORDER].long()], params[:, JITTER]
    turned, luma = _turns(factors[:, Column.HUE]), torch.tensor(LUMA)
    maps = torch.eye(3, 4).repeat(len(params), 1, 1)
    for position in range(4):
        kind = kinds[:, position]
        factor = factors.gather(1, kind[:, None])[:, :, None]  # [n, 1, 1]
        grey_share, mean_share = BASES[kind.clamp(max=2)][:, :, None, None].unbind(1)
        grey = (maps[..., :3] @ mean[..., None] + maps[..., 3:]).mT @ luma[:, None]  # [n, 1, 1], of the crop by now
        blend = torch.eye(3, 4) * factor
        blend[..., :3] += (1 - factor) * grey_share * luma
        blend[..., 3:] += (1 - factor) * mean_share * grey
        maps = _after(torch.where((kind == Column.HUE)[:, None, None], turned, blend), maps)
    to_grey = torch.cat([luma.expand(3, 3), torch.zeros(3, 1)], 1)
    return torch.where((params[:, Column.GRAY] > 0)[:, None, None], _after(to_grey, maps), maps)


def _turns(turn: Tensor) -> Tensor:
    """Rotations about the grey axis by fractions [n] of the circle, [n, 3, 4]."""
    angle = (2 * math.pi * turn)[:, None, None]
    across = torch.tensor([(0.0, -1.0, 1.0), (1.0, 0.0, -1.0), (-1.0, 1.0, 0.0)]) / 3**0.5  # a quarter turn
    rotation = angle.cos() * torch.eye(3) + (1 - angle.cos()) / 3 + angle.sin() * across
    return torch.nn.functional.pad(rotation, (0, 1))


def _after(second: Tensor, first: Tensor) -> Tensor:
    """The map [n, 3, 4] that does first the one, then the other."""
    both = second[..., :3] @ first
    both[..., 3:] += second[..., 3:]
    return both
