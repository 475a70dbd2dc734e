"""FSDP2: each process holds a part of every weight, of its gradient, of the teacher's and of the optimiser's state."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ssl_vit.methods.method import Method

_REST = "rest.pt"  # of a sharded checkpoint: what is no weight and no state of the optimiser


def sharded(processes: int, timeout: timedelta) -> ModelParallelStrategy:
    """The strategy of a run whose model is spread over so many processes, which wait so long for each other."""
    return ModelParallelStrategy(shard, data_parallel_size=processes, tensor_parallel_size=1, timeout=timeout)


def shard(method: Method, mesh: DeviceMesh) -> Method:
    """Shard a method in place: the blocks of its backbones one by one, then all that is left together.

    What is left (heads, queues of prototypes) is whole in every process during a step, as losses read it directly.
    """
    data_parallel = mesh["data_parallel"]
    for block in blocks(method):
        fully_shard(block, mesh=data_parallel)
    fully_shard(method, mesh=data_parallel)
    return method


def blocks(method: Method) -> list[nn.Module]:
    """List the repeated parts of networks: what stands in a ``ModuleList`` or ``Sequential`` and has parameters.

    The outermost ones, so that none is inside another.
    """
    found: list[nn.Module] = []

    def look(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(module, nn.ModuleList | nn.Sequential) and _is_block(child):
                found.append(child)
            else:
                look(child)

    look(method)
    return found


def _is_block(module: nn.Module) -> bool:
    return len(list(module.children())) > 0 and any(True for _ in module.parameters())


def is_sharded(fabric: Fabric) -> bool:
    """Whether models that this Fabric sets up are spread over its processes."""
    return isinstance(fabric.strategy, ModelParallelStrategy)


def fill_whole(copy: Method, method: Method) -> Method:
    """Give a copy that was made before sharding the whole weights of today; called on all ranks together."""
    state = method.state_dict()
    copy.load_state_dict(
        {name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in state.items()}
    )
    return copy


def save_sharded(method: Method, optimizer: Optimizer, rest: dict[str, Any], folder: Path) -> None:
    """Each process writes its parts into a folder, all or nothing: it is staged beside and renamed when it is whole.

    rest: plain values and whole tensors, written by the first process. Called on all ranks together.
    """
    staged = folder.with_name(f".{folder.name}.tmp")
    first = torch.distributed.get_rank() == 0
    if first:
        shutil.rmtree(staged, ignore_errors=True)
    torch.distributed.barrier()
    weights, states = get_state_dict(method, optimizer)
    save({"weights": weights, "optimizer": states}, checkpoint_id=staged)
    if first:
        torch.save(rest, staged / _REST)
        staged.replace(folder)
    torch.distributed.barrier()


def load_sharded(method: Method, optimizer: Optimizer, folder: Path) -> dict[str, Any]:
    """Put back what :func:`save_sharded` has written, by any number of processes; the rest that was given to it."""
    weights, states = get_state_dict(method, optimizer)
    load({"weights": weights, "optimizer": states}, checkpoint_id=folder)  # into these tensors
    set_state_dict(method, optimizer, model_state_dict=weights, optim_state_dict=states)
    rest: dict[str, Any] = torch.load(folder / _REST, map_location="cpu", weights_only=True)
    return rest
