"""A small backbone of each family that exports are for, with weights that nobody else has."""

from functools import cache

from ssl_vit.backbones.registry import create_backbone
from tests.export.conftest import TINY_VIT, randomised

_SWIN = {"depths": (2, 2, 1, 1), "embed_dim": 12, "num_heads": (1, 2, 4, 8), "window_size": 2}
_SPECS = {
    "ViT": ("vit_tiny_patch16_224", {"model_args": TINY_VIT}),
    "DINOv2": ("vit_small_patch14_dinov2", {"model_args": TINY_VIT | {"patch_size": 14, "img_size": 28}}),
    "BEiT": (
        "beit_base_patch16_224",
        {"image_size": 32, "model_args": {"embed_dim": 48, "depth": 2, "num_heads": 3}},
    ),
    "Swin": ("swin_tiny_patch4_window7_224", {"image_size": 64, "model_args": _SWIN}),
    "ResNet": ("resnet18", {"image_size": 64}),
    "ResNet, bottlenecks": ("resnet50", {"image_size": 64, "model_args": {"layers": (1, 2, 1, 1)}}),
    "ConvNeXt": ("convnext_atto", {"image_size": 64, "model_args": {"depths": (1, 2, 1, 1), "dims": (8, 16, 32, 64)}}),
    "PVTv2": ("pvt_v2_b0", {"image_size": 64, "model_args": {"depths": (1, 2, 1, 1)}}),
    "PVTv2, linear": ("pvt_v2_b2_li", {"image_size": 64, "model_args": {"depths": (1, 1, 1, 1)}}),
    "ours": ("cswin_tiny_224", {"image_size": 64, "model_args": {"embed_dim": 16, "depths": (1, 1, 1, 1)}}),
}
MODELS = tuple(_SPECS)


@cache
def model(name):
    timm_name, options = _SPECS[name]
    return randomised(timm_name, **options)


def fresh(name):
    """The same architecture with other weights."""
    timm_name, options = _SPECS[name]
    return create_backbone(timm_name, **options)
