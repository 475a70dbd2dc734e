"""One file says all about itself: timm's names, and in its metadata what trained it and how to feed it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.module_adapter import ModuleBackbone
from ssl_vit.export import plugin, timm
from ssl_vit.export.target import (
    WEIGHTS,
    KeyPairs,
    Verified,
    frozen,
    probe,
    run_snippet,
    save_weights,
    verified,
    weights_of,
)


def write(backbone: AdaptedBackbone, folder: Path, description: Mapping[str, Any]) -> KeyPairs:
    """Write model.safetensors; its metadata has timm's config.json and the description as JSON, under "config"."""
    config = timm.config(backbone, backbone.info.mean, backbone.info.std, description)
    save_weights(weights_of(backbone), folder, {"config": json.dumps(config)})
    return [(key, key) for key in weights_of(backbone)]


def snippet(folder: Path, backbone: AdaptedBackbone) -> str:
    """Return the Python that builds timm's model from the metadata; our own families need this package too."""
    if isinstance(backbone, ModuleBackbone):
        return plugin.snippet(Path(folder) / WEIGHTS, backbone)
    imports = timm.families_of(backbone.info.name)
    return "\n".join(
        [
            "; ".join(["import json, timm, safetensors", *imports]),
            f"file = safetensors.safe_open({str(Path(folder).absolute() / WEIGHTS)!r}, 'pt')",
            "config = json.loads(file.metadata()['config'])",
            "model = timm.create_model(config['architecture'], num_classes=0, **config['model_args']).eval()",
            "model.load_state_dict({key: file.get_tensor(key) for key in file.keys()})",
        ]
    )


def verify(folder: Path, backbone: AdaptedBackbone) -> Verified:
    """Run the snippet and compare what the model gives."""
    if isinstance(backbone, ModuleBackbone):
        return plugin.verify(folder / WEIGHTS, backbone)
    consumer = f"safetensors {safetensors.__version__}"
    model = run_snippet(snippet(folder, backbone), consumer)["model"]
    images, ours = probe(backbone), frozen(backbone)
    with torch.inference_mode():
        return verified(consumer, [ours.model(images)], [model(images)])
