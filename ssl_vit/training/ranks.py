"""The other processes of the same run: which one this is, and what becomes of it when another is lost."""

from __future__ import annotations

import ctypes
import os
import platform
import signal

from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch.distributed import DistError

from ssl_vit.errors import RunFailed


def rank() -> int:
    """This process's place among all, as Lightning reads it from the environment."""
    return int(getattr(rank_zero_only, "rank", None) or 0)


def die_with_parent() -> None:
    """A rank that Lightning started must not outlive the first one (Linux)."""
    if platform.system() == "Linux" and "TORCHELASTIC_RUN_ID" not in os.environ and "SLURM_PROCID" not in os.environ:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def lost_rank(error: RuntimeError) -> RunFailed | None:
    """What to tell the user if this is a collective's error about another process that is gone."""
    if isinstance(error, DistError) or "gloo/transport" in str(error):
        return RunFailed(
            "another process of this run was lost, often because memory ran out (its own error, if it had one, is "
            "above); go on with --resume"
        )
    return None
