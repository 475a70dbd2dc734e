"""How quick the machine at hand is."""

from __future__ import annotations

import math
import time

import torch


def bfloat16_is_fast() -> bool:
    """Whether matrix products in bfloat16 are quicker than in float32 here: on recent GPUs and CPUs."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


# Dense, as their makers give it, in bfloat16 or float16.
_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12, "T4": 65e12}


def peak_flops(device: torch.device, precision: str) -> tuple[float, str]:
    """The most operations a second that matrix products reach, and where that is from.

    The maker's figure for GPUs that are known in 16 bits; else what a large product reaches here.
    """
    kind = torch.float32 if precision == "32-true" else torch.bfloat16
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    known = next((peak for part, peak in _PEAKS.items() if part in name.split() or f"{part}-" in name), None)
    if known is not None and kind is not torch.float32:
        return known, f"the {known / 1e12:.0f} TFLOP/s of a {name}"
    side = 4096 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=kind)
    best = math.inf
    for _ in range(6):
        start = time.perf_counter()
        product = a @ a
        float(product[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - start)
    measured = 2 * side**3 / best
    return measured, f"the {measured / 1e9:,.0f} GFLOP/s that a plain matrix product reaches here"
