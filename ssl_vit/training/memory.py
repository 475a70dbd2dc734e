"""What is said where memory is too small, or nearly so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ssl_vit import device
from ssl_vit.config import RunConfig
from ssl_vit.errors import RunFailed
from ssl_vit.progress import memory_gb
from ssl_vit.system import machine_memory

_NEAR = 0.9  # of a GPU's memory
_OF_CPU = ("can't allocate memory", "std::bad_alloc")  # what torch says of a machine's own


@contextmanager
def enough_memory(config: RunConfig) -> Iterator[None]:
    """RunFailed, with what the step is made of and what to change, where an allocation fails inside."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        where = _where(error)
        if where is None:
            raise
        raise RunFailed(f"{where} is too small for this step: {_step(config)}; {less(config)}") from error


def less(config: RunConfig) -> str:
    """The flags that need less memory than these settings do."""
    train, ways = config.train, list[str]()
    if not train.checkpoint_activations:
        ways.append("--set train.checkpoint_activations=true (the same numbers in more time, also with --resume)")
    world = train.devices * train.nodes
    if train.batch_size // (world * train.accumulate) > 1:
        ways.append(f"--set train.accumulate={2 * train.accumulate} (the same batch in more parts)")
        ways.append(f"--batch-size {train.batch_size // (2 * world) * world}")
    ways.append(f"--set backbone.image_size=N (now {config.backbone.image_size})")
    return f"give less to do: {', '.join(ways[:-1])}{' or ' * (len(ways) > 1)}{ways[-1]}"


def _where(error: Exception) -> str | None:
    """Whose memory an allocation failed in, and how full it was; None for any other error."""
    if isinstance(error, torch.OutOfMemoryError):
        figures = ""
        if found := device.memory():
            free, total = (number / 1e9 for number in found)
            figures = f": {total:.1f} GB, of which this process had {memory_gb():.1f} and {free:.1f} are free"
        return f"the memory of the GPU ({device.name()}{figures})"
    if isinstance(error, MemoryError) or any(words in str(error) for words in _OF_CPU):
        total = machine_memory() / 1e9
        held = "" if device.on_gpu() else f", of which this process had {memory_gb():.1f}"
        return f"the memory of this machine ({total:.1f} GB{held})"
    return None


def _step(config: RunConfig) -> str:
    """How much a step is: images a device, parts, crops."""
    train, size = config.train, config.backbone.image_size
    views = config.method.views(size).views
    crops = " + ".join(f"{view.count} of {view.size}" for view in views)
    images = train.batch_size // (train.devices * train.nodes)
    parts = f" in {train.accumulate} parts" if train.accumulate > 1 else ""
    return f"{images} images a device{parts}, of each {crops} pixels, for {config.backbone.name} in {train.precision}"


def memory_is_short() -> bool:
    """Whether the GPU's memory was nearly used up at some time."""
    held, found = device.most_held(), device.memory()
    return held is not None and found is not None and held > _NEAR * found[1]
