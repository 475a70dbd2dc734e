"""What methods with a moving-average teacher share."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.distributed as dist
from timm.layers.drop import DropPath
from torch import Tensor, nn

from ssl_vit.adapt.lora import share_frozen

M = TypeVar("M", bound=nn.Module)


def as_teacher(student: M) -> M:
    """A copy that takes no gradient and drops no path (2104.14294 keeps it in train mode all the same)."""
    teacher = copy.deepcopy(student).requires_grad_(False)
    for module in teacher.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    share_frozen(teacher, student)
    return teacher


@torch.no_grad()
def average_into(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, over parameters; buffers stay the teacher's own."""
    pairs = [(t.data, s.data) for t, s in zip(teacher.parameters(), student.parameters(), strict=True) if t is not s]
    torch._foreach_lerp_([t for t, _ in pairs], [s for _, s in pairs], 1.0 - momentum)


@torch.no_grad()
def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of a tensor over all processes; the tensor itself where there is one."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(x)
        x = x / dist.get_world_size()
    return x


@torch.no_grad()
def gather_over_ranks(x: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks; the tensor itself where there is one process."""
    world = rank_and_world()[1]
    if world == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world)]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) where there is one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
