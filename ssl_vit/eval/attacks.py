"""Adversarial images: the smallest changes of the pixels that mislead a classifier on frozen features."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.data.evalset import EvalDataset, EvalLoader
from ssl_vit.data.sources import Source
from ssl_vit.eval.features import evaluating
from ssl_vit.eval.linear import LinearProbe
from ssl_vit.eval.readout import Readout, read_out
from ssl_vit.progress import progress

PGD_STEPS, PGD_REACH = 10, 2.5  # a step is the radius x reach / steps, as in arXiv 1706.06083's public challenge


def attacked(
    backbone: Backbone,
    source: Source,
    readout: Readout,
    probe: LinearProbe,
    radius: float,
    steps: int,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> NDArray[np.bool_]:
    """Each readable image of the source is told right (True) or wrong [M] when its pixels are changed to mislead.

    radius: the most that a value in [0, 1] is changed by. One step is the fast gradient sign method (arXiv
    1412.6572); several are projected gradient descent from a random start (arXiv 1706.06083).
    """
    weights, bias = (each.to(device) for each in probe.affine())
    mean, std = (torch.tensor(each, device=device).view(3, 1, 1) for each in (readout.mean, readout.std))
    loader = EvalLoader(EvalDataset(source, readout.image_size), readout.batch_size, max_bad=1.0)
    generator = torch.Generator().manual_seed(seed)
    right = []

    def logits(images: Tensor) -> Tensor:
        return read_out(backbone, (images - mean) / std, readout) @ weights + bias

    with evaluating(backbone), progress(f"{'FGSM' if steps == 1 else 'PGD'} {255 * radius:g}/255", len(source)) as done:
        for batch in loader:
            if len(batch.index):
                clean, labels = batch.images.to(device).float() / 255, batch.labels.to(device)
                start = torch.zeros(clean.shape)
                if steps > 1:
                    start.uniform_(-radius, radius, generator=generator)
                size = radius if steps == 1 else PGD_REACH * radius / steps
                changed = (clean + start.to(device)).clamp(0, 1)
                for _ in range(steps):
                    changed = _step(changed, clean, labels, logits, size, radius)
                with torch.no_grad():
                    right.append((logits(changed).argmax(1) == labels).cpu().numpy())
            done(len(batch.index) + len(batch.unread))
    return np.concatenate(right)


def _step(
    changed: Tensor, clean: Tensor, labels: Tensor, logits: Callable[[Tensor], Tensor], size: float, radius: float
) -> Tensor:
    changed = changed.detach().requires_grad_()
    loss = torch.nn.functional.cross_entropy(logits(changed), labels, reduction="sum")
    (slope,) = torch.autograd.grad(loss, changed)
    moved = changed.detach() + size * slope.sign()
    return (clean + (moved - clean).clamp(-radius, radius)).clamp(0, 1)
