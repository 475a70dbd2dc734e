"""What is said where memory is too small, or nearly so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ssl_vit.errors import RunFailed

LESS = (
    "raise train.accumulate (the same batch in more parts), set train.checkpoint_activations=true (the same numbers in "
    "more time), or lower train.batch_size"
)
_NEAR = 0.9  # of a GPU's memory


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
