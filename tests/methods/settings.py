"""Settings that make a run and each method small, for tests that run over all methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEACHER = str(Path(__file__).with_name("teacher.safetensors"))
"""A ViT for 32 pixels, width 16, two blocks, with large random weights and colours of its own, which says so itself."""
NEEDED: dict[str, dict[str, Any]] = {"distill": {"teacher": TEACHER}, "manifold": {"teacher": TEACHER}}
"""What a method has no usual value for."""
COMMON = {
    "backbone.name": "vit_tiny_patch16_224",
    "backbone.args": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "backbone.image_size": 32,
    "backbone.drop_path": 0.2,
    "optim.lr": 1e-3,
    "optim.warmup_epochs": 1.0,
    "train.batch_size": 8,
    "train.epochs": 2,
    "train.precision": "32-true",
    "train.checkpoint_every": 4,
    "health.every": 3,
    "data.workers": 0,
}
DISTILLING = {
    "out_dim": 64,
    "hidden_dim": 32,
    "bottleneck_dim": 16,
    "momentum": 0.9,
    "freeze_last_layer_epochs": 0.0,
    "local_crops": 1,
    "local_size": 16,
}
SIAMESE = {"hidden_dim": 32, "out_dim": 16}
SMALL: dict[str, dict[str, Any]] = {
    "dino": DISTILLING,
    "esvit": DISTILLING | {"region_from": 0.5},
    "ibot": DISTILLING,
    "dinov2": DISTILLING,
    "moby": SIAMESE | {"queue_size": 16},
    "mocov3": SIAMESE,
    "byol": SIAMESE,
    "simclr": SIAMESE,
    "vicreg": SIAMESE,
    "visreg": SIAMESE | {"local_crops": 1, "local_size": 16, "slices": 16},
    "sigreg": SIAMESE | {"local_crops": 1, "local_size": 16, "slices": 16},
    "beit": {"codes": 16, "tokenizer_steps": 5},
    "simmim": {},
    "mae": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
    "distill": NEEDED["distill"] | {"queue_size": 16},
    "manifold": NEEDED["manifold"] | {"queue_size": 16, "random_patches": 20},
    "detreg": {"proposals": "random", "boxes": 4, "queries": 6, "dim": 64, "depth": 1, "hidden": 32},
}
