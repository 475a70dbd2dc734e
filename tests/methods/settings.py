"""Settings that make each method small, for tests that run over all of them."""

from __future__ import annotations

from typing import Any

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
    "esvit": DISTILLING,
    "ibot": DISTILLING,
    "moby": SIAMESE | {"queue_size": 16},
    "mocov3": SIAMESE,
    "byol": SIAMESE,
    "beit": {"codes": 16, "tokenizer_steps": 5},
    "simmim": {},
    "mae": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
}
