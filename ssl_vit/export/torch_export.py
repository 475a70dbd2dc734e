"""The backbone becomes a program of torch.export, which runs without timm and without this package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.export.outputs import Outputs, trace
from ssl_vit.export.target import KeyPairs, Verified, probe, run_snippet, verified

FILE = "model.pt2"


def write(backbone: AdaptedBackbone, folder: Path, description: Mapping[str, Any]) -> KeyPairs:
    """Write model.pt2: images [B, 3, H, W] -> (pooled, patches, *pyramid); B is free."""
    torch.export.save(trace(backbone), folder / FILE)
    return []


def snippet(folder: Path, backbone: AdaptedBackbone) -> str:
    """Return the Python that loads the program; it needs torch alone."""
    path = str(Path(folder).absolute() / FILE)
    return f"import torch\nmodel = torch.export.load({path!r}).module()\n# pooled, patches, *pyramid = model(images)"


def verify(folder: Path, backbone: AdaptedBackbone) -> Verified:
    """Run the snippet on a batch of another size than the one it was traced with, and compare every output."""
    consumer = f"torch {torch.__version__}"
    model = run_snippet(snippet(folder, backbone), consumer)["model"]
    images = probe(backbone, batch=3)
    with torch.inference_mode():
        return verified(consumer, Outputs(backbone)(images), model(images))
