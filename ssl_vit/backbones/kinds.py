"""What each family mixes its tokens with: declared where it is registered, and for timm's own in a table here.

No code can tell a mixer by its looks; for what neither says there is a guess, which is said as one.
"""

from __future__ import annotations

from fnmatch import fnmatch

from torch import nn

from ssl_vit.registry import declared_kind

_FAMILIES = {
    "transformer": """beit cait coat convit crossvit davit deepseek_vit deit eva gcvit gemma4_vit hiera
        hieradet_sam2 mvitv2 naflexvit nest pit pvt_v2 qwen3_vit swin_transformer swin_transformer_v2
        swin_transformer_v2_cr tnt twins vision_transformer vision_transformer_relpos vision_transformer_sam volo
        xcit""",
    "hybrid": """byoanet cpubone csatv2 edgenext efficientformer efficientformer_v2 efficientvim efficientvit_mit
        efficientvit_msra iformer levit lowformer maxxvit mobilenetv5 mobilevit nextvit shvit swiftformer tiny_vit
        visformer vision_transformer_hybrid vitamin""",
    "mlp": "mlp_mixer sequencer",  # Sequencer mixes with LSTMs: nearest to a mixer
    "convolutional": """byobnet convmixer convnext cspnet cspnext densenet dla dpn efficientnet fasternet fastvit
        focalnet ghostnet hardcorenas hgnet hrnet inception_next inception_resnet_v2 inception_v3 inception_v4
        lcnetv2 mambaout metaformer mobilenetv3 nasnet nfnet pnasnet rdnet regnet repghost repvit res2net resnest
        resnet resnetv2 rexnet selecsls senet sknet starnet tresnet vgg vovnet xception xception_aligned""",
}
_KINDS = {family: kind for kind, families in _FAMILIES.items() for family in families.split()}
_EXCEPTIONS = {  # names with attention in families without, and the reverse
    "caformer_*": "hybrid",
    "fastvit_[sm]a*": "hybrid",
    "fastvit_mci*": "hybrid",
    "mobilenetv4_hybrid_*": "hybrid",
    "vit_*_fnet_*": "mlp",
}


def kind_of(name: str, module: str) -> str | None:
    """ "transformer", "convolutional", "mlp" or "hybrid"; None where neither the module of the name nor the table says.

    >>> kind_of("caformer_s18", "timm.models.metaformer"), kind_of("convformer_s18", "timm.models.metaformer")
    ('hybrid', 'convolutional')
    >>> kind_of("resnet_of_mine", "mine.resnet")
    """
    if declared := declared_kind(module):
        return declared
    if not module.startswith("timm."):
        return None
    for pattern, kind in _EXCEPTIONS.items():
        if fnmatch(name, pattern):
            return kind
    return _KINDS.get(module.rpartition(".")[2])


def kind_by_layers(model: nn.Module) -> str:
    """A guess for a family that the table doesn't know: by the names and the kernels of its layers."""
    names = {type(module).__name__.lower() for module in model.modules()}
    if any("attention" in name or "attn" in name for name in names):
        return "transformer"
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    overlapping = [conv for conv in convolutions if conv.kernel_size[0] > conv.stride[0]]
    return "convolutional" if 2 * len(overlapping) > len(convolutions) or len(overlapping) > 4 else "mlp"
