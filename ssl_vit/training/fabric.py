"""The devices of a run, by Lightning Fabric: its processes, what they compute in, and how they share a model."""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as processes
from lightning.fabric import Fabric
from lightning.fabric.plugins.precision import MixedPrecision, Precision
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.strategies.launchers import subprocess_script
from lightning.fabric.strategies.strategy import Strategy

from ssl_vit import device
from ssl_vit.config import TrainConfig
from ssl_vit.errors import RunFailed
from ssl_vit.training.ranks import watch
from ssl_vit.training.sharding import sharded

STARTS = 15.0  # minutes that all processes have to start: on a busy machine importing alone takes one


def new_fabric(train: TrainConfig) -> Fabric:
    """A Fabric for these settings, not launched yet; its other processes start with ``launch()``."""
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # it greets by logging each process
    subprocess_script._launch_process_observer = watch
    accelerator = device.kind()
    return Fabric(
        accelerator=accelerator,
        devices=train.devices,
        num_nodes=train.nodes,
        strategy=_strategy(train),
        plugins=_precision(train, accelerator),
    )


def launch(fabric: Fabric, minutes: float) -> None:
    """Start the other processes and find them; from then on they wait so many minutes for each other.

    Raises RunFailed where some don't come.
    """
    try:
        fabric.launch()
    except processes.DistError as error:
        waited = f"the {fabric.world_size} processes of this run did not find each other within {_starts(minutes):g}"
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RunFailed(
            f"{waited} minutes; see whether one ended with an error of its own, whether all reach {place}, or raise "
            "train.timeout, then give the command again"
        ) from error
    if fabric.world_size > 1:
        for group in list(processes.distributed_c10d._world.pg_map):
            _set_timeout(timedelta(minutes=minutes), group)


_set_timeout = getattr(processes, "set_timeout", None) or processes.distributed_c10d._set_pg_timeout  # torch 2.11's


def _starts(minutes: float) -> float:
    return max(STARTS, minutes)


class Autocast(MixedPrecision):
    """Autocast that keeps no casts, and casts nothing on its way in or out.

    A weight that is used twice in a step so gets its gradient summed in float32, not in 16 bits; and images reach the
    augmented views' first layer as they are.
    """

    def forward_context(self) -> AbstractContextManager[Any]:
        """What runs inside computes in 16 bits where that is safe."""
        return torch.autocast(self.device, dtype=self._desired_input_dtype, cache_enabled=False)

    def convert_input(self, data: Any) -> Any:
        """Leave what the method is given as it is."""
        return data

    def convert_output(self, data: Any) -> Any:
        """Leave what the method gives as it is."""
        return data


def _precision(train: TrainConfig, accelerator: str) -> Precision:
    return Precision() if train.precision == "32-true" else Autocast(train.precision, accelerator)


def _strategy(train: TrainConfig) -> Strategy | str:
    patience = timedelta(minutes=_starts(train.timeout))
    if train.strategy == "fsdp":
        return sharded(train.devices * train.nodes, patience)
    return DDPStrategy(timeout=patience) if train.devices * train.nodes > 1 else "auto"
