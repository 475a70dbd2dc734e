"""The official detectors, made of our parts."""

from __future__ import annotations

from typing import Any

from timm.layers.norm_act import freeze_batch_norm_2d
from torch import Tensor, nn

from ssl_vit.backbones import create_backbone
from ssl_vit.backbones.timm_adapter import TimmBackbone
from ssl_vit.detectors.deformable_detr import DeformableDETR
from ssl_vit.detectors.detr import DETR
from ssl_vit.detectors.yolos import DetectionViT

# Backbone, built for (pixels), whether positions are added again after every block, arguments.
YOLOS: dict[str, tuple[str, tuple[int, int], bool, dict[str, Any]]] = {
    "tiny": ("vit_tiny_patch16_224", (800, 1333), False, {}),
    "small": ("vit_small_patch16_224", (512, 864), True, {}),
    "small_dWr": ("vit_small_patch16_224", (512, 864), True, {"embed_dim": 330, "depth": 14}),
    "base": ("vit_base_patch16_224", (800, 1344), True, {}),
}


def detr(name: str, dilated: bool = False) -> nn.Module:
    """COCO's 91 names, and nothing; dilated: with the last maps as large as those before (DC5)."""
    return DETR(_resnet(name, {"output_stride": 16} if dilated else {}), 91)


def deformable(embedding: int | None) -> nn.Module:
    """DETReg's: while it is pretrained, each query also embeds its object."""
    return DeformableDETR(_resnet("resnet50", {}), 91, embedding=embedding)


def _resnet(name: str, arguments: dict[str, Any]) -> TimmBackbone:
    """The official ones hold scale and shift of batch norm as buffers, one and zero until they are loaded."""
    backbone = create_backbone(name, model_args={"zero_init_last": False, **arguments})
    backbone.model = freeze_batch_norm_2d(backbone.model)
    return backbone


def yolos(size: str) -> nn.Module:
    """The transformer without its two heads."""
    name, image_size, middle, arguments = YOLOS[size]
    vit = create_backbone(name, model_args=arguments).model
    return DetectionViT(vit, image_size, middle=middle)


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Class logits."""
    found: Tensor = model(images).logits
    return found


def first_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Class logits of the first image alone."""
    return logits(model, images[:1])
