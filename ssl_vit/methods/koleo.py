"""KoLeo: features shall be far from their nearest neighbour, so that they fill the sphere (1806.03198)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.methods.joint import of_all_ranks
from ssl_vit.methods.targets import exact
from ssl_vit.methods.teacher import rank_and_world

_TINY = 1e-8  # added to distances, as in DINOv2's code: the logarithm of a copy's stays finite


def koleo(features: Tensor) -> Tensor:
    """The mean over features [B, D] of minus the logarithm of the distance to the nearest of all ranks' others, [].

    Of unit length, as in DINOv2 (2304.07193). 0 where there is one alone.

    >>> import math, torch
    >>> found = koleo(torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))  # all are the root of 2 from the nearest
    >>> math.isclose(found, -math.log(2) / 2, rel_tol=1e-6)
    True
    """
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(exact(features), eps=_TINY, dim=-1)
        every = of_all_ranks(unit[None])[0]
        if len(every) < 2:
            return 0 * unit.sum()
        alike = unit.detach() @ every.detach().T
        itself = torch.arange(len(unit), device=unit.device) + rank_and_world()[0] * len(unit)
        nearest = alike.scatter(1, itself[:, None], -2.0).argmax(1)
        distances = torch.linalg.vector_norm(unit - every[nearest], dim=-1)
        loss: Tensor = -(distances + _TINY).log().mean()
    return loss
