"""torchvision's own ViT, Swin, ResNet and ConvNeXt get their weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.checkpoints.names.torchvision import MAPS
from ssl_vit.export import structure
from ssl_vit.export.target import (
    WEIGHTS,
    KeyPairs,
    Verified,
    frozen,
    probe,
    run_snippet,
    save_weights,
    to_library_names,
    verified,
)

_MODELS = "torchvision.models."


def write(backbone: AdaptedBackbone, folder: Path, description: Mapping[str, Any]) -> KeyPairs:
    """Write model.safetensors with torchvision's names, without a classifier."""
    mapped = to_library_names(backbone, MAPS, "torchvision", backbone.info.family, set())
    save_weights(mapped.state, folder)
    return mapped.pairs


def snippet(folder: Path, backbone: AdaptedBackbone) -> str:
    """Return the Python that builds torchvision's model without its classifier and loads strictly: it gives [B, D]."""
    model, classifier = _BUILDERS[backbone.info.family](backbone)
    return "\n".join(
        [
            "import torch, torchvision",
            "from safetensors.torch import load_file",
            f"model = {_MODELS}{model}.eval()",
            f"model.{classifier} = torch.nn.Identity()",
            f"model.load_state_dict(load_file({str(Path(folder).absolute() / WEIGHTS)!r}))",
        ]
    )


def verify(folder: Path, backbone: AdaptedBackbone) -> Verified:
    """Run the snippet and compare pooled features; RunFailed where torchvision can't load or gives others."""
    consumer = f"torchvision {torchvision.__version__}"
    model = run_snippet(snippet(folder, backbone), consumer)["model"]
    images = probe(backbone)
    with torch.inference_mode():
        return verified(consumer, [frozen(backbone)(images).pooled], [model(images)])


def _vit(backbone: AdaptedBackbone) -> tuple[str, str]:
    its = structure.vit(backbone)
    sizes = f"image_size={its.size[0]}, patch_size={its.patch}, hidden_dim={its.dim}, mlp_dim={its.hidden}"
    return f"VisionTransformer({sizes}, num_layers={its.depth}, num_heads={its.heads})", "heads"


def _swin(backbone: AdaptedBackbone) -> tuple[str, str]:
    its = structure.swin(backbone)
    patch, window = [its.patch] * 2, [its.window] * 2
    return f"SwinTransformer({patch}, {its.dim}, {its.depths}, {its.heads}, {window}, mlp_ratio={its.ratio})", "head"


def _resnet(backbone: AdaptedBackbone) -> tuple[str, str]:
    its = structure.resnet(backbone)
    block = f"{_MODELS}resnet.{'Bottleneck' if its.bottleneck else 'BasicBlock'}"
    width = f", groups={its.groups}, width_per_group={its.width}" if its.bottleneck else ""
    return f"ResNet({block}, {its.depths}{width})", "fc"


def _convnext(backbone: AdaptedBackbone) -> tuple[str, str]:
    its = structure.convnext(backbone)
    stages = zip(its.dims, [*its.dims[1:], None], its.depths, strict=True)
    settings = ", ".join(f"{_MODELS}convnext.CNBlockConfig{stage}" for stage in stages)
    return f"ConvNeXt([{settings}])", "classifier[2]"


_BUILDERS = {
    "vision_transformer": _vit,
    "swin_transformer": _swin,
    "resnet": _resnet,
    "convnext": _convnext,
}
