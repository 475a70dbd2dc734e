"""The names in a folder that Hugging Face transformers saves (those of version 4, which 5 still writes and reads)."""

from __future__ import annotations

from ssl_vit.checkpoints.keymap import KeyMap, Rule, fused, renames
from ssl_vit.checkpoints.names.torchvision import flat

_EMBEDDINGS = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.{p}": "embeddings.patch_embeddings.projection.{p}",
    "norm.{p}": "layernorm.{p}",
}
_OURS, _THEIRS = "blocks.{i}.", "encoder.layer.{i}."
_MLP = {
    "norm1.{p}": "layernorm_before.{p}",
    "attn.proj.{p}": "attention.output.dense.{p}",
    "norm2.{p}": "layernorm_after.{p}",
    "mlp.fc1.{p}": "intermediate.dense.{p}",
    "mlp.fc2.{p}": "output.dense.{p}",
}
_DINOV2 = {
    "norm1.{p}": "norm1.{p}",
    "attn.proj.{p}": "attention.output.dense.{p}",
    "ls1.gamma": "layer_scale1.lambda1",
    "norm2.{p}": "norm2.{p}",
    "mlp.fc1.{p}": "mlp.fc1.{p}",
    "mlp.fc2.{p}": "mlp.fc2.{p}",
    "ls2.gamma": "layer_scale2.lambda1",
}
_BEIT = _MLP | {
    "gamma_{g}": "lambda_{g}",
    "attn.q_bias": "attention.attention.query.bias",
    "attn.v_bias": "attention.attention.value.bias",
    "attn.relative_position_bias_table": "attention.attention.relative_position_bias.relative_position_bias_table",
}
_PVT = {
    "norm1.{p}": "layer_norm_1.{p}",
    "attn.q.{p}": "attention.query.{p}",
    "attn.proj.{p}": "attention.proj.{p}",
    "attn.sr.{p}": "attention.spatial_reduction.{p}",
    "attn.norm.{p}": "attention.layer_norm.{p}",
    "norm2.{p}": "layer_norm_2.{p}",
    "mlp.fc1.{p}": "mlp.dense1.{p}",
    "mlp.dwconv.{p}": "mlp.dwconv.dwconv.{p}",
    "mlp.fc2.{p}": "mlp.dense2.{p}",
}


def _qkv(ours: str, theirs: str, kind: str = "{p}") -> Rule:
    return fused(f"{ours}attn.qkv.{kind}", *(f"{theirs}{part}.{kind}" for part in ("query", "key", "value")))


def _swin() -> list[Rule]:
    rules = renames(
        {
            "patch_embed.proj.{p}": "embeddings.patch_embeddings.projection.{p}",
            "patch_embed.norm.{p}": "embeddings.norm.{p}",
            "norm.{p}": "layernorm.{p}",
        }
    )
    bias = {"attn.relative_position_bias_table": "attention.self.relative_position_bias_table"}
    ours, theirs = "layers.{s}.blocks.{b}.", "encoder.layers.{s}.blocks.{b}."
    rules += [*renames(_MLP | bias, ours, theirs), _qkv(ours, theirs + "attention.self.")]
    for stage in range(3):  # theirs downsamples where a stage ends, timm where the next one begins
        names = {"reduction.weight": "reduction.weight", "norm.{p}": "norm.{p}"}
        rules += renames(names, f"layers.{stage + 1}.downsample.", f"encoder.layers.{stage}.downsample.")
    return rules


def _resnet() -> list[Rule]:
    rules = renames(
        {"conv1.weight": "embedder.embedder.convolution.weight", "bn1.{n}": "embedder.embedder.normalization.{n}"}
    )
    for stage in range(4):
        ours, theirs = f"layer{stage + 1}.{{b}}.", f"encoder.stages.{stage}.layers.{{b}}."
        for conv in range(3):
            names = {f"conv{conv + 1}.weight": "convolution.weight", f"bn{conv + 1}.{{n}}": "normalization.{n}"}
            rules += renames(names, ours, f"{theirs}layer.{conv}.")
        names = {"downsample.0.weight": "convolution.weight", "downsample.1.{n}": "normalization.{n}"}
        rules += renames(names, ours, theirs + "shortcut.")
    return rules


def _convnext() -> list[Rule]:
    ours, theirs = "stages.{s}.blocks.{b}.", "encoder.stages.{s}.layers.{b}."
    block = {
        "conv_dw.{p}": "dwconv.{p}",
        "norm.{p}": "layernorm.{p}",
        "mlp.fc1.bias": "pwconv1.bias",
        "mlp.fc2.bias": "pwconv2.bias",
        "gamma": "layer_scale_parameter",
    }
    return [
        *renames({"stem.0.{p}": "embeddings.patch_embeddings.{p}", "stem.1.{p}": "embeddings.layernorm.{p}"}),
        *renames(block, ours, theirs),
        *(Rule((f"{ours}mlp.fc{i}.weight",), (f"{theirs}pwconv{i}.weight",), flat) for i in (1, 2)),
        *renames({"stages.{s}.downsample.{i}.{p}": "encoder.stages.{s}.downsampling_layer.{i}.{p}"}),
        *renames({"head.norm.{p}": "layernorm.{p}"}),
    ]


def _pvt_v2() -> list[Rule]:
    ours, theirs = "stages.{s}.blocks.{b}.", "encoder.layers.{s}.blocks.{b}."
    embedding = {"proj.{p}": "proj.{p}", "norm.{p}": "layer_norm.{p}"}
    rules = [
        *renames(_PVT, ours, theirs),
        fused(ours + "attn.kv.{p}", theirs + "attention.key.{p}", theirs + "attention.value.{p}"),
        *renames({"stages.{s}.norm.{p}": "encoder.layers.{s}.layer_norm.{p}"}),
        *renames(embedding, "patch_embed.", "encoder.layers.0.patch_embedding."),
    ]
    return rules + renames(embedding, "stages.{s}.downsample.", "encoder.layers.{s}.patch_embedding.")


VIT = KeyMap(*renames(_EMBEDDINGS), *renames(_MLP, _OURS, _THEIRS), _qkv(_OURS, _THEIRS + "attention.attention."))
DINOV2 = KeyMap(*renames(_EMBEDDINGS), *renames(_DINOV2, _OURS, _THEIRS), _qkv(_OURS, _THEIRS + "attention.attention."))
BEIT = KeyMap(
    *renames(_EMBEDDINGS | {"fc_norm.{p}": "pooler.layernorm.{p}"}),
    *renames(_BEIT, _OURS, _THEIRS),
    _qkv(_OURS, _THEIRS + "attention.attention.", "weight"),
)
MAPS = {  # by transformers' model_type
    "vit": VIT,
    "dinov2": DINOV2,
    "beit": BEIT,
    "swin": KeyMap(*_swin()),
    "resnet": KeyMap(*_resnet()),
    "convnext": KeyMap(*_convnext()),
    "pvt_v2": KeyMap(*_pvt_v2()),
}
