"""Memory that is kept, and what is said where it is too small, or nearly so."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ssl_vit.errors import RunFailed

LESS = (
    "raise train.accumulate (the same batch in more parts), set train.checkpoint_activations=true (the same numbers in "
    "more time), or lower train.batch_size"
)
_NEAR = 0.9  # of a GPU's memory
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt
_KEPT = 1 << 30  # bytes, of one piece
_ONCE_KEPT = 1 << 25  # the most that glibc took before 2.35


def keep_memory() -> None:
    """What is freed stays with the process: the next step takes it again, and new pages cost 3 % of a step on a CPU.

    Where the C library is glibc; others have no such setting.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "mallopt"):
        if not libc.mallopt(_MMAP_THRESHOLD, _KEPT):
            libc.mallopt(_MMAP_THRESHOLD, _ONCE_KEPT)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)


@contextmanager
def enough_memory() -> Iterator[None]:
    """RunFailed, with what to change, where an allocation fails inside, on a GPU or a CPU."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            whose = f"the memory of the GPU ({torch.cuda.get_device_name()}) is too small for this step"
        elif "can't allocate memory" in str(error):
            whose = "the memory of this machine is too small for this step"
        else:
            raise
        raise RunFailed(f"{whose}: {LESS}") from error


def memory_is_short() -> bool:
    """Whether the GPU's memory was nearly used up at some time."""
    if not torch.cuda.is_available():
        return False
    return torch.cuda.max_memory_allocated() > _NEAR * torch.cuda.get_device_properties().total_memory
