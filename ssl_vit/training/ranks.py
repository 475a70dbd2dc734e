"""The other processes of the same run: which one this is, and what becomes of it when another is lost."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch.distributed import DistError

from ssl_vit.errors import RunFailed, UserError


def rank() -> int:
    """This process's place among all, as Lightning reads it from the environment."""
    return int(getattr(rank_zero_only, "rank", None) or 0)


def check_startable(devices: int) -> None:
    """UserError where Lightning would have to start this program again, once a device, and there is no such file."""
    started = {"LOCAL_RANK", "SLURM_PROCID"} & os.environ.keys()
    if devices > 1 and not started and sys.modules["__main__"].__spec__ is None and not os.path.isfile(sys.argv[0]):
        raise UserError(
            f"{devices} devices: the program is started once more for each of them, and this one is no file; write it "
            "to a file and run that, or set train.devices to 1"
        )


def same_images(fabric: Fabric, fingerprint: Mapping[str, int | str]) -> None:
    """RunFailed where the processes of a run have found different images: each learns from a part of the same order.

    Called on all ranks together, so that all of them end.
    """
    if fabric.world_size == 1:
        return
    found: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(found, dict(fingerprint))
    other = next((number for number, its in enumerate(found) if its != found[0]), None)
    if other is not None:
        raise RunFailed(
            f"the processes of this run have different images (0: {found[0]}, {other}: {found[other]}); give every "
            "machine the same ones, and choose or shuffle a dataset with the same seed in every process"
        )


def lost_rank(error: RuntimeError) -> RunFailed | None:
    """What to tell the user if this is a collective's error about another process that is gone."""
    if isinstance(error, DistError) or "gloo/transport" in str(error):
        return RunFailed(
            "another process of this run was lost, often because memory ran out (its own error, if it had one, is "
            "above); go on with --resume"
        )
    return None
