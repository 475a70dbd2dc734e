"""Detectron2's names: its own for ResNet, timm's without the last norm for ViTDet, the official ones for Swin."""

from __future__ import annotations

from ssl_vit.checkpoints.keymap import KeyMap, Rule, renames

_SWIN_BLOCK = {
    "norm1.{p}": "norm1.{p}",
    "attn.relative_position_bias_table": "attn.relative_position_bias_table",
    "attn.qkv.{p}": "attn.qkv.{p}",
    "attn.proj.{p}": "attn.proj.{p}",
    "norm2.{p}": "norm2.{p}",
    "mlp.fc1.{p}": "mlp.fc1.{p}",
    "mlp.fc2.{p}": "mlp.fc2.{p}",
}


def _resnet() -> list[Rule]:
    rules = renames({"conv1.weight": "stem.conv1.weight", "bn1.{n}": "stem.conv1.norm.{n}"})
    for stage in range(1, 5):
        block = {
            "conv{c}.weight": "conv{c}.weight",
            "bn{c}.{n}": "conv{c}.norm.{n}",
            "downsample.0.weight": "shortcut.weight",
            "downsample.1.{n}": "shortcut.norm.{n}",
        }
        rules += renames(block, f"layer{stage}.{{b}}.", f"res{stage + 1}.{{b}}.")
    return rules


def _vit() -> list[Rule]:
    names: tuple[str, ...] = ("pos_embed", "patch_embed.proj.{p}", "blocks.{i}.norm{j}.{p}", "blocks.{i}.mlp.fc{j}.{p}")
    names += ("blocks.{i}.attn.qkv.{p}", "blocks.{i}.attn.proj.{p}")
    return renames({name: "backbone.net." + name for name in names})


def _swin() -> list[Rule]:
    rules = renames({"patch_embed.proj.{p}": "patch_embed.proj.{p}", "patch_embed.norm.{p}": "patch_embed.norm.{p}"})
    block = "layers.{s}.blocks.{b}."
    rules += renames(_SWIN_BLOCK, block, block)
    for stage in range(3):  # theirs downsamples where a stage ends, timm where the next one begins
        names = {"reduction.weight": "reduction.weight", "norm.{p}": "norm.{p}"}
        rules += renames(names, f"layers.{stage + 1}.downsample.", f"layers.{stage}.downsample.")
    return rules + renames({"norm.{p}": "norm3.{p}"})  # a norm for each stage; timm has the last one alone


MAPS = {
    "resnet": KeyMap(*_resnet()),
    "vision_transformer": KeyMap(*_vit()),
    "swin_transformer": KeyMap(*_swin()),
}
NOT_THEIRS = {"vision_transformer": {"cls_token", "norm.weight", "norm.bias"}}  # ViTDet has neither
