"""The names of MMDetection 3 and MMPretrain 1, without the prefix ``backbone.``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ssl_vit.checkpoints.keymap import KeyMap, Rule, join, renames
from ssl_vit.checkpoints.names.torchvision import RESNET, flat

_VIT = {
    "cls_token": "cls_token",
    "pos_embed": "pos_embed",
    "patch_embed.proj.{p}": "patch_embed.projection.{p}",
    "norm.{p}": "ln1.{p}",
}
_VIT_BLOCK = {
    "norm1.{p}": "ln1.{p}",
    "attn.qkv.{p}": "attn.qkv.{p}",
    "attn.proj.{p}": "attn.proj.{p}",
    "norm2.{p}": "ln2.{p}",
    "mlp.fc1.{p}": "ffn.layers.0.0.{p}",
    "mlp.fc2.{p}": "ffn.layers.1.{p}",
}
_SWIN_BLOCK = {
    "norm1.{p}": "norm1.{p}",
    "attn.relative_position_bias_table": "attn.w_msa.relative_position_bias_table",
    "attn.qkv.{p}": "attn.w_msa.qkv.{p}",
    "attn.proj.{p}": "attn.w_msa.proj.{p}",
    "norm2.{p}": "norm2.{p}",
    "mlp.fc1.{p}": "ffn.layers.0.0.{p}",
    "mlp.fc2.{p}": "ffn.layers.1.{p}",
}
_PVT_BLOCK = {
    "norm1.{p}": "norm1.{p}",
    "attn.proj.{p}": "attn.attn.out_proj.{p}",
    "attn.sr.{p}": "attn.sr.{p}",
    "attn.norm.{p}": "attn.norm.{p}",
    "norm2.{p}": "norm2.{p}",
    "mlp.fc1.bias": "ffn.layers.0.bias",
    "mlp.dwconv.{p}": "ffn.layers.1.{p}",
    "mlp.fc2.bias": "ffn.layers.4.bias",
}


def _to_unfold(weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """Four neighbours, column by column, then channels -> channels, then four neighbours row by row."""
    apart = [weight.reshape(*weight.shape[:-1], 4, -1) for weight in weights]
    return [weight[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2) for weight in apart]


def _from_unfold(weights: Sequence[Tensor]) -> Sequence[Tensor]:
    apart = [weight.reshape(*weight.shape[:-1], -1, 4).transpose(-1, -2) for weight in weights]
    return [weight[..., [0, 2, 1, 3], :].flatten(-2) for weight in apart]


def _swin() -> list[Rule]:
    rules = renames(
        {"patch_embed.proj.{p}": "patch_embed.projection.{p}", "patch_embed.norm.{p}": "patch_embed.norm.{p}"}
    )
    rules += renames(_SWIN_BLOCK, "layers.{s}.blocks.{b}.", "stages.{s}.blocks.{b}.")
    for stage in range(3):  # theirs downsamples where a stage ends, timm where the next one begins
        for name in ("reduction.weight", "norm.{p}"):
            ours, theirs = f"layers.{stage + 1}.downsample.{name}", f"stages.{stage}.downsample.{name}"
            rules.append(Rule((ours,), (theirs,), _to_unfold, _from_unfold))
    return rules + renames({"norm.{p}": "norm3.{p}"})  # a norm for each stage; timm has the last one alone


def _kernels(weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """A linear layer's weight as a 1 × 1 convolution's."""
    return [weight[:, :, None, None] for weight in weights]


def _apart(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Query, key and value in one -> the query, and key and value in one."""
    third = len(tensors[0]) // 3
    return [tensors[0][:third].contiguous(), tensors[0][third:].contiguous()]


def _pvt_v2() -> list[Rule]:
    ours, theirs = "stages.{s}.blocks.{b}.", "layers.{s}.1.{b}."
    rules = renames(_PVT_BLOCK, ours, theirs)
    for left, right in (("fc1", "0"), ("fc2", "4")):
        rules.append(Rule((f"{ours}mlp.{left}.weight",), (f"{theirs}ffn.layers.{right}.weight",), _kernels, flat))
    for kind in ("weight", "bias"):
        query_and_pair = (f"{ours}attn.q.{kind}", f"{ours}attn.kv.{kind}")
        rules.append(Rule(query_and_pair, (f"{theirs}attn.attn.in_proj_{kind}",), join, _apart))
    embedding = {"proj.{p}": "projection.{p}", "norm.{p}": "norm.{p}"}
    rules += renames({"stages.{s}.norm.{p}": "layers.{s}.2.{p}"})
    rules += renames(embedding, "patch_embed.", "layers.0.0.")
    return rules + renames(embedding, "stages.{s}.downsample.", "layers.{s}.0.")


MAPS = {
    "resnet": KeyMap(*renames(RESNET)),
    "vision_transformer": KeyMap(*renames(_VIT), *renames(_VIT_BLOCK, "blocks.{i}.", "layers.{i}.")),
    "swin_transformer": KeyMap(*_swin()),
    "pvt_v2": KeyMap(*_pvt_v2()),
}
