"""Several processes that fill one folder of features together, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """A process has a place among all, and a way to wait until the others have come as far."""

    rank: int = 0
    world: int = 1
    wait: Callable[[], object] = lambda: None


@contextmanager
def ranks() -> Iterator[Ranks]:
    """The ranks are torchrun's, or one process is alone. All must see the same file system."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    dist.init_process_group("gloo")  # nothing but the waiting goes through it
    try:
        yield Ranks(dist.get_rank(), world, dist.barrier)
    finally:
        dist.destroy_process_group()
