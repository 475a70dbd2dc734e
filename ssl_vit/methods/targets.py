"""From a teacher's logits to targets that spread over all prototypes: by a running centre, or by Sinkhorn-Knopp."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def centred(logits: Tensor, center: Tensor, temp: float) -> Tensor:
    """DINO's targets (2104.14294): softmax of logits [N, K] less their running mean [1, K]."""
    return ((logits - center) / temp).softmax(dim=-1)


def sinkhorn(logits: Tensor, temp: float, iterations: int = 3) -> Tensor:
    """Targets in which every prototype gets the same share of the batch over all ranks (SwAV, 2006.09882).

    logits: [N, K]; gives [N, K], rows that sum to one. Logarithms, as small temperatures overflow elsewhere.

    >>> import torch
    >>> sinkhorn(torch.tensor([[9.0, 8.0], [9.0, 2.0]]), temp=0.5).argmax(1)
    tensor([1, 0])
    """
    return centred(logits, sinkhorn_center(logits, temp, iterations), temp)


def sinkhorn_center(logits: Tensor, temp: float, iterations: int = 3) -> Tensor:
    """The centre [1, K] with which :func:`centred` gives Sinkhorn-Knopp's targets for logits [N, K]."""
    q, center = logits / temp, logits.new_zeros(1, logits.shape[1])
    for _ in range(iterations):
        surplus = _logsumexp_over_ranks(q)
        center = center + surplus * temp
        q = q - surplus  # the same share for each prototype
        q = q - q.logsumexp(dim=1, keepdim=True)  # one for each image
    return center


def _logsumexp_over_ranks(q: Tensor) -> Tensor:
    """Logsumexp over the rows of all ranks, [1, K]."""
    local = q.logsumexp(dim=0, keepdim=True)
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return local
    largest = local.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    total = (local - largest).exp()
    dist.all_reduce(total)
    return total.log() + largest


def exact(x: Tensor) -> Tensor:
    """At least float32, whatever autocast made of it."""
    return x if x.dtype == torch.float64 else x.float()
