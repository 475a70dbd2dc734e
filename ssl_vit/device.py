"""The device that everything is computed on. Torch is asked for it here and nowhere else.

It is a GPU of CUDA or ROCm where there is one, else the CPU. ``SSL_VIT_DEVICE=cpu`` leaves the GPUs alone, and
``SSL_VIT_DEVICE=mps`` takes Apple's, on which nothing of this package has been run: so it is never taken unasked.
"""

from __future__ import annotations

import os
from typing import Literal

import torch

from ssl_vit.errors import UserError

Kind = Literal["cuda", "mps", "cpu"]
UNTRIED = "Apple's GPU is not used: nothing has been run on it yet; SSL_VIT_DEVICE=mps takes it all the same"
KINDS: tuple[Kind, ...] = ("cuda", "mps", "cpu")
"""By the names that torch and Lightning's Fabric have for them; ROCm's is "cuda" too."""


def kind() -> Kind:
    """The kind of device that is used.

    Raises:
        UserError: ``SSL_VIT_DEVICE`` asks for one that is not there.
    """
    asked = os.environ.get("SSL_VIT_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    for known in KINDS:
        if asked == known:
            if not _there(known):
                raise UserError(f"SSL_VIT_DEVICE={asked}: torch sees no such device here; ssl-vit doctor says why")
            return known
    raise UserError(f"SSL_VIT_DEVICE: expected {', '.join(KINDS[:-1])} or {KINDS[-1]}, got {asked!r}")


def the_device() -> torch.device:
    """The device that is used; of several GPUs the first."""
    return torch.device(kind())


def on_gpu() -> bool:
    """Whether that is a GPU."""
    return kind() != "cpu"


def gpus() -> int:
    """How many GPUs a run may use."""
    return {"cuda": torch.cuda.device_count(), "mps": 1, "cpu": 0}[kind()]


def apples() -> bool:
    """Whether this machine has a GPU of Apple's that torch can use."""
    return torch.backends.mps.is_available()


def _there(known: Kind) -> bool:
    return known == "cpu" or (torch.cuda.is_available() if known == "cuda" else apples())


def name(index: int | None = None) -> str:
    """What the device calls itself."""
    if (used := kind()) == "cuda":
        return str(torch.cuda.get_device_name(index))
    return "Apple GPU" if used == "mps" else "CPU"


def wait() -> None:
    """Return when the device has done all that it was given."""
    if (used := kind()) != "cpu":
        getattr(torch, used).synchronize()


def memory() -> tuple[int, int] | None:
    """Bytes of the GPU's memory that are free, and all of it; None for a CPU."""
    if (used := kind()) == "cpu":
        return None
    if used == "cuda":
        return torch.cuda.mem_get_info()
    most = torch.mps.recommended_max_memory()
    return most - torch.mps.driver_allocated_memory(), most


def most_held() -> int | None:
    """The most bytes of the GPU's memory that tensors have had, on Apple's those that they have now; None for a CPU."""
    if (used := kind()) == "cpu":
        return None
    return torch.cuda.max_memory_allocated() if used == "cuda" else torch.mps.current_allocated_memory()


def forget() -> None:
    """Give memory that no tensor has back to the device, and begin to count the most anew."""
    if (used := kind()) != "cpu":
        getattr(torch, used).empty_cache()
    if used == "cuda":
        torch.cuda.reset_peak_memory_stats()


def bfloat16_is_fast() -> bool:
    """Whether matrix products in bfloat16 are quicker than in float32 here: on recent GPUs and CPUs."""
    used = kind()
    if used == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return used == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def widest(device: torch.device) -> torch.dtype:
    """The widest type of numbers on a device: float64, which Apple's GPUs lack."""
    return torch.float32 if device.type == "mps" else torch.float64
