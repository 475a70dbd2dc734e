"""Whether all numbers that a run goes on from are finite."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from ssl_vit.training.step import Learner


@torch.no_grad()
def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers in them are; of sharded ones, in this process's part."""
    local = (each.to_local() if isinstance(each, DTensor) else each for each in tensors)
    numbers = [each.detach() for each in local if each.is_floating_point() and each.numel()]
    largest: tuple[Tensor, ...] = torch._foreach_norm(numbers, torch.inf) if numbers else ()
    by_place: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for each in largest:
        by_place.setdefault((each.device, each.dtype), []).append(each)
    return all(bool(torch.stack(group).isfinite().all()) for group in by_place.values())


def not_finite(learner: Learner) -> str | None:
    """The first weight, buffer or state of the optimiser that is not finite, on any rank; all ranks ask together."""
    named: dict[str, Tensor] = dict(learner.method.named_parameters())
    owners = {id(each): name for name, each in named.items()}
    named |= {name: each for name, each in learner.method.named_buffers() if name not in learner.infinite}
    for parameter, state in learner.optimizer.state.items():
        of = owners.get(id(parameter), "a weight")
        named |= {f"{key} of {of}": each for key, each in state.items() if isinstance(each, Tensor)}
    sound = all_finite(named.values())
    if learner.fabric.world_size > 1:
        told = torch.tensor(int(not sound), device=learner.fabric.device)
        torch.distributed.all_reduce(told)
        sound = not int(told)
    return None if sound else next((n for n, each in named.items() if not all_finite([each])), "another rank's weights")
