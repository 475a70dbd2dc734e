"""How quick the machine at hand is."""

from __future__ import annotations

import math
import time

import torch

from ssl_vit.backbones.backbone import BackboneInfo


def wants_channels_last(info: BackboneInfo) -> bool:
    """Whether the backbone is quicker with images that lie pixel by pixel in memory: where it has many convolutions.

    Their maps then lie so too. Weights stay as they are, and with them checkpoints and exports: turning these too was
    worth no more. On a CPU a step of ResNet-50 is 1.2 times as quick in bfloat16 and 1.1 times in float32, of CoAtNet
    1.1 times; ConvNeXt, Swin and ViT don't mind.
    """
    return info.kind in ("convolutional", "hybrid")


# Dense, as their makers give it, in bfloat16 or float16.
_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12, "T4": 65e12}


def peak_flops(device: torch.device, precision: str) -> tuple[float, str]:
    """The most operations a second that matrix products reach, and where that is from.

    The maker's figure for GPUs that are known in 16 bits; else what a large product reaches here.
    """
    kind = torch.float32 if precision == "32-true" else torch.bfloat16
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    known = next((peak for part, peak in _PEAKS.items() if part in name.split() or f"{part}-" in name), None)
    if known is not None and kind is not torch.float32:
        return known, f"the {known / 1e12:.0f} TFLOP/s of a {name}"
    side = 1024 if device.type == "cpu" else 4096
    a = torch.randn(side, side, device=device, dtype=kind)
    best = math.inf
    for _ in range(6):
        start = time.perf_counter()
        product = a @ a
        float(product[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - start)
    measured = 2 * side**3 / best
    return measured, f"the {measured / 1e9:,.0f} GFLOP/s that a plain matrix product reaches here"
