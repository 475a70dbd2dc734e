"""What an exported network's features tell apart: whether two views of an image find each other among all others.

The views are of some images of the run, drawn beside those that it learns from, so that no step ever sees them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.data.batch import Batch, to_views
from ssl_vit.data.loader import Views
from ssl_vit.data.plan import ViewPlan
from ssl_vit.data.sources import Source
from ssl_vit.training.buffers import Buffers

IMAGES = 64
SURE = 2.0  # standard errors by which a share must be above another
_STREAM = 1 << 40  # an "epoch" that no run comes to, for the views' random numbers
_CHUNK = 32  # images in one pass, at most


class HeldBack:
    """Two views each of evenly spaced images of a run, and what a network makes of them."""

    def __init__(self, source: Source, plan: ViewPlan, seed: int, colours: Sequence[Sequence[float]]) -> None:
        self._source, self._seed, self._colours = source, seed, colours
        self._plan = ViewPlan((replace(plan.views[0], count=2),))
        self._batch: Batch | None = None

    @torch.no_grad()
    def features(self, backbone: Backbone, most: int) -> Tensor | None:
        """Pooled features [2, N, D] on the CPU; None where fewer than two images can be read.

        most: images in a pass, as many as a training step has. Batch norms use the views' own statistics, as in
        training: running ones change while no weight does.
        """
        batch = self._batch = self._batch or self._read()
        if len(batch.index) < 2 or not len(batch.pixels):
            return None
        mean, std = self._colours
        device = next(backbone.parameters()).device
        (images,) = to_views(batch, mean, std, device)
        parts = math.ceil(len(images) / max(2, min(_CHUNK, most)))
        with _looking(backbone):
            pooled = torch.cat([backbone(part).pooled.float() for part in images.tensor_split(parts)])
        return pooled.view(2, len(batch.index), -1).cpu()

    def _read(self) -> Batch:
        count = min(IMAGES, len(self._source))
        places = np.unique(np.linspace(0, len(self._source) - 1, count).round().astype(int)).tolist()
        return Views(self._source, self._plan, self._seed)[[(_STREAM, place) for place in places]]


@contextmanager
def _looking(backbone: nn.Module) -> Iterator[None]:
    """Inside, a network drops nothing at random; afterwards it is as it was, buffers and all."""
    modes = [(module, module.training) for module in backbone.modules()]
    buffers = Buffers(backbone)
    buffers.keep()
    backbone.eval()
    for module, _ in modes:
        if isinstance(module, _BatchNorm):
            module.training = True
    try:
        yield
    finally:
        buffers.put_back()
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def own_view_share(features: Tensor) -> float:
    """The share of views [2, N, D] that are nearest to their image's other view, of all; nan where one is not finite.

    By cosine, after subtracting the mean. A tie finds nothing.

    >>> own_view_share(torch.eye(4).expand(2, 4, 4)), own_view_share(torch.ones(2, 4, 4))
    (1.0, 0.0)
    """
    views = features.cpu().double().flatten(0, 1)
    if not views.isfinite().all():
        return math.nan
    unit = nn.functional.normalize(views - views.mean(0), dim=1)
    near = (unit @ unit.T).fill_diagonal_(-torch.inf)
    other = torch.arange(len(views)).roll(len(views) // 2)[:, None]
    own = near.gather(1, other)
    rest = near.scatter(1, other, -torch.inf).amax(1, keepdim=True)
    return float((own > rest + 1e-12).double().mean())


@torch.no_grad()
def distance(now: Tensor, start: Tensor) -> float:
    """How far features are from what they were, as a share of their length."""
    return float((now - start).cpu().double().norm() / start.cpu().double().norm().clamp_min(1e-30))


def clearly_above(share: float, other: float, views: int) -> bool:
    """Whether a share of so many views is above another by more than chance.

    >>> clearly_above(0.05, 1 / 127, 128), clearly_above(0.02, 1 / 127, 128)
    (True, False)
    """
    spread = max(other * (1 - other), 1 / views)
    return share - other > SURE * math.sqrt(spread / views)
