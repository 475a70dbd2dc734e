"""Sharpness-aware minimisation: the gradient is taken where the loss nearby is highest (2010.01412, 2106.01548)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ssl_vit.methods.method import Method, Progress
from ssl_vit.training.buffers import Buffers
from ssl_vit.training.optim import local, norms_of

_TINY = 1e-12  # so that a gradient of 0 stays one


@contextmanager
def ascended(method: Method, progress: Progress, rho: float, buffers: Buffers) -> Iterator[None]:
    """Inside, the trained weights are ``rho`` up the gradient that they have, and have none; after, what they were.

    The gradient is that of all weights together, of this process where it was not averaged over them, and without
    what the method drops: what rests does not ascend. Buffers move inside without a trace.
    """
    method.before_optimizer(progress)
    moved = [p for p in method.parameters() if p.grad is not None]
    with torch.no_grad():
        weights, ascent = local(moved), local([p.grad for p in moved if p.grad is not None])
        before = torch._foreach_clone(weights)  # as subtracting what was added would not give the same bits
        norm = torch.linalg.vector_norm(torch.stack(norms_of([p.grad for p in moved if p.grad is not None])))
        torch._foreach_mul_(ascent, rho / (norm + _TINY))
        torch._foreach_add_(weights, ascent)
        for weight in moved:
            weight.grad = None
    buffers.keep()
    try:
        yield
    finally:
        buffers.put_back()
        with torch.no_grad():
            torch._foreach_copy_(weights, before)
