"""What every peer is set to: the official recipe of arXiv 2104.14294 on a ViT-Ti/16, eight images a step."""

from __future__ import annotations

import torch
from torch import Tensor

BACKBONE = "vit_tiny_patch16_224"
IMAGES = 8
SIZES = (224, 224, *[96] * 8)
PROTOTYPES, HIDDEN, BOTTLENECK = 65536, 2048, 256
LR = 5e-4 * IMAGES / 256
DECAY, DECAY_END = 0.04, 0.4
CLIP, MOMENTUM, DROP_PATH, TEMP = 3.0, 0.996, 0.1, 0.04
GLOBAL_SCALE, LOCAL_SCALE = (0.4, 1.0), (0.05, 0.4)


def views() -> list[Tensor]:
    """A batch of ten views, decoded and augmented: what a step is given."""
    return [torch.randn(IMAGES, 3, size, size) for size in SIZES]


def unit_gradients(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Every trained parameter gets a gradient of length 1, which clipping leaves as it is; returns the parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        gradient = torch.randn_like(parameter)
        parameter.grad = gradient / gradient.norm()
    return trained
