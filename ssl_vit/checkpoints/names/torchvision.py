"""timm's names become torchvision's (torchvision 0.26 and later)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_vit.checkpoints.keymap import KeyMap, Rule, renames

RESNET = {
    "conv1.weight": "conv1.weight",
    "bn1.{n}": "bn1.{n}",
    "layer{s}.{b}.conv{c}.weight": "layer{s}.{b}.conv{c}.weight",
    "layer{s}.{b}.bn{c}.{n}": "layer{s}.{b}.bn{c}.{n}",
    "layer{s}.{b}.downsample.0.weight": "layer{s}.{b}.downsample.0.weight",
    "layer{s}.{b}.downsample.1.{n}": "layer{s}.{b}.downsample.1.{n}",
}
_VIT = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed.proj.{p}": "conv_proj.{p}",
    "norm.{p}": "encoder.ln.{p}",
}
_VIT_BLOCK = {
    "norm1.{p}": "ln_1.{p}",
    "attn.qkv.{p}": "self_attention.in_proj_{p}",
    "attn.proj.{p}": "self_attention.out_proj.{p}",
    "norm2.{p}": "ln_2.{p}",
    "mlp.fc1.{p}": "mlp.0.{p}",
    "mlp.fc2.{p}": "mlp.3.{p}",
}
_SWIN_BLOCK = {
    "norm1.{p}": "norm1.{p}",
    "attn.qkv.{p}": "attn.qkv.{p}",
    "attn.proj.{p}": "attn.proj.{p}",
    "norm2.{p}": "norm2.{p}",
    "mlp.fc1.{p}": "mlp.0.{p}",
    "mlp.fc2.{p}": "mlp.3.{p}",
}
_CONVNEXT_BLOCK = {
    "conv_dw.{p}": "block.0.{p}",
    "norm.{p}": "block.2.{p}",
    "mlp.fc1.bias": "block.3.bias",
    "mlp.fc2.bias": "block.5.bias",
}


def window_index(bias: Tensor) -> Tensor:
    """Return the row of the bias table [(2 w - 1)², heads] for each pair of cells of a w × w window, [w² · w²]."""
    width = (round(bias.shape[0] ** 0.5) + 1) // 2
    cells = torch.cartesian_prod(torch.arange(width), torch.arange(width))
    apart = cells[:, None] - cells[None] + width - 1
    index: Tensor = apart[..., 0] * (2 * width - 1) + apart[..., 1]
    return index.flatten()


def _with_index(tables: Sequence[Tensor]) -> Sequence[Tensor]:
    return [tables[0], window_index(tables[0])]


def _swin() -> list[Rule]:
    rules = renames({"patch_embed.proj.{p}": "features.0.0.{p}", "patch_embed.norm.{p}": "features.0.2.{p}"})
    for stage in range(4):
        ours, theirs = f"layers.{stage}.blocks.{{b}}.", f"features.{2 * stage + 1}.{{b}}."
        bias = "attn.relative_position_bias_table"
        index = theirs + "attn.relative_position_index"
        rules += renames(_SWIN_BLOCK, ours, theirs)
        rules.append(Rule((ours + bias,), (theirs + bias, index), _with_index, lambda tensors: tensors[:1]))
        rules += renames({"reduction.weight": "reduction.weight", "norm.{p}": "norm.{p}"}, *_downsample(stage))
    return rules + renames({"norm.{p}": "norm.{p}"})


def _convnext() -> list[Rule]:
    rules = renames({"stem.{i}.{p}": "features.0.{i}.{p}", "head.norm.{p}": "classifier.0.{p}"})
    for stage in range(4):
        ours, theirs = f"stages.{stage}.blocks.{{b}}.", f"features.{2 * stage + 1}.{{b}}."
        rules += renames(_CONVNEXT_BLOCK, ours, theirs)
        for left, right in (("mlp.fc1.weight", "block.3.weight"), ("mlp.fc2.weight", "block.5.weight")):
            rules.append(Rule((ours + left,), (theirs + right,), flat))
        rules.append(Rule((ours + "gamma",), (theirs + "layer_scale",), lambda t: [t[0][:, None, None]], flat_scale))
        rules += renames({"{i}.{p}": "{i}.{p}"}, *_downsample(stage, "stages"))
    return rules


def _downsample(stage: int, ours: str = "layers") -> tuple[str, str]:
    return f"{ours}.{stage}.downsample.", f"features.{2 * stage}."


def flat(weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """Turn a 1 × 1 convolution's weight into a linear layer's."""
    return [weight.flatten(1) for weight in weights]


def flat_scale(weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """Flatten a scale, [D, 1, 1] -> [D]."""
    return [weight.flatten() for weight in weights]


MAPS = {
    "resnet": KeyMap(*renames(RESNET)),
    "vision_transformer": KeyMap(
        *renames(_VIT), *renames(_VIT_BLOCK, "blocks.{i}.", "encoder.layers.encoder_layer_{i}.")
    ),
    "swin_transformer": KeyMap(*_swin()),
    "convnext": KeyMap(*_convnext()),
}
