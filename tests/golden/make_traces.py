"""Writes traces.json: what a few steps of every method came to, to be run again by tests/training/test_traces.py.

    python -m tests.golden.make_traces [NAME ...]

Of the runs that are named, as "dino-vit"; without names of all. A trace is made again only where what a run computes
was changed on purpose; the commit says why.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

import ssl_vit
from ssl_vit.errors import UserError
from tests.methods.settings import NEEDED
from tests.training.drawn import draw

TRACES = Path(__file__).with_name("traces.json")
IMAGES = 24
COLUMNS = ("loss", "grad_norm", "lr")
COMMON: dict[str, Any] = {
    "data.mean": [0.45, 0.45, 0.45],
    "data.std": [0.2, 0.2, 0.2],
    "data.workers": 0,
    "data.kernels": "torch",
    "optim.lr": 1e-4,  # a higher one amplifies the rounding of another machine
    "optim.warmup_epochs": 1.0,
    "train.batch_size": 8,
    "train.epochs": 2,  # 6 steps
    "train.precision": "32-true",
    "health.every": 3,
}
BACKBONES: dict[str, dict[str, Any]] = {
    "vit": {
        "backbone.name": "vit_tiny_patch16_224",
        "backbone.args": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
        "backbone.image_size": 32,
        "backbone.drop_path": 0.2,
    },
    "swin": {
        "backbone.name": "swin_tiny_patch4_window7_224",
        "backbone.args": {"depths": [2, 2], "embed_dim": 24, "num_heads": [2, 4], "window_size": 4},
        "backbone.image_size": 32,
        "backbone.drop_path": 0.1,
    },
    "resnet": {
        "backbone.name": "resnet10t",
        "backbone.args": {"channels": [8, 16, 16, 24], "stem_width": 8},
        "backbone.image_size": 64,
        "backbone.drop_path": 0.0,
    },
}
DISTILLING = {"out_dim": 64, "hidden_dim": 32, "bottleneck_dim": 16, "momentum": 0.9, "local_crops": 2}
SIAMESE = {"hidden_dim": 32, "out_dim": 16}
SMALL: dict[str, dict[str, Any]] = {
    "dino": DISTILLING | {"centering": "mean", "head_norm": "none", "teacher_temp": 0.04, "warmup_teacher_temp": 0.02},
    "esvit": DISTILLING | {"region_from": 0.0},
    "ibot": DISTILLING,
    "dinov2": DISTILLING | {"gram_weight": 1.0, "gram_from": 0.4},
    "moby": SIAMESE | {"queue_size": 16},
    "mocov3": SIAMESE,
    "byol": SIAMESE,
    "simclr": SIAMESE,
    "vicreg": SIAMESE,
    "visreg": SIAMESE | {"local_crops": 1, "slices": 16},
    "sigreg": SIAMESE | {"local_crops": 1, "slices": 16},
    "beit": {"codes": 16, "tokenizer_steps": 3},
    "mae": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
    "distill": {"queue_size": 16},
    "manifold": {"queue_size": 16, "random_patches": 20},
    "detreg": {"proposals": "random", "boxes": 4, "queries": 6, "dim": 64, "depth": 1, "hidden": 32},
}


def settings(method: str, backbone: str) -> dict[str, Any]:
    """A small run of a method on a backbone."""
    own = {"name": method} | SMALL.get(method, {}) | NEEDED.get(method, {})
    if "local_crops" in own:
        own["local_size"] = BACKBONES[backbone]["backbone.image_size"] // 2
    return COMMON | BACKBONES[backbone] | {f"method.{key}": value for key, value in own.items()}


def steps(out: Path) -> list[dict[str, Any]]:
    """The lines of a run's steps."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "grad_norm" in row]


def trace(images: Path, out: Path, method: str, backbone: str) -> dict[str, Any] | None:
    """What each step came to, beside every setting, so that no "auto" is left; None where it is refused."""
    try:
        ssl_vit.pretrain(images, out, settings(method, backbone))
    except UserError as error:
        print(f"{method}-{backbone}: {error}")
        return None
    resolved = yaml.safe_load((out / "config.yaml").read_text())
    kept = {
        f"{section}.{key}": value
        for section, values in resolved.items()
        for key, value in values.items()
        if value is not None and (section, key) not in (("data", "path"), ("method", "teacher"))
    }
    return {column: [row[column] for row in steps(out)] for column in COLUMNS} | {"settings": kept}


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    found = json.loads(TRACES.read_text()) if names else {}
    with tempfile.TemporaryDirectory() as folder:
        images = draw(Path(folder) / "images", IMAGES)
        for method in ssl_vit.list_methods():
            for backbone in BACKBONES:
                name = f"{method}-{backbone}"
                if names and name not in names:
                    continue
                if (made := trace(images, Path(folder) / name, method, backbone)) is not None:
                    found[name] = made
    lines = [f"{json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found)]
    TRACES.write_text("{\n" + ",\n".join(lines) + "\n}\n")  # a line a run


if __name__ == "__main__":
    main(sys.argv[1:])
