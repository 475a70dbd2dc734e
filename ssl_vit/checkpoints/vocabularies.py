"""Whose names a backbone's weights have, and how they become timm's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from ssl_vit.checkpoints.keymap import KeyMap, Mapped, Rule, renames
from ssl_vit.checkpoints.names import openmmlab, torchvision, transformers

State = dict[str, Tensor]


class Vocabulary(NamedTuple):
    """A vocabulary is the names that one library or paper uses."""

    name: str
    mark: str  # pattern that some name has
    to_timm: Callable[[State], Mapped]


def _official_swin(state: State) -> Mapped:
    """Theirs downsamples where a stage ends, timm where the next one begins; masks and indices are no weights."""
    return _renamed(state, lambda key: re.sub(r"^layers\.(\d+)\.downsample\.", _next_stage, key))


def _next_stage(match: re.Match[str]) -> str:
    return f"layers.{int(match[1]) + 1}.downsample."


def _dinov2(state: State) -> Mapped:
    """DINOv2 names registers and the gated MLP otherwise; timm adds the class token's position to the token itself.

    In training blocks lie in chunks, ``blocks.1.7.norm1``: the second number counts the blocks.
    """
    names = {r"^blocks\.\d+\.(\d+)\.": r"blocks.\1.", r"\.mlp\.w12\.": ".mlp.fc1.", r"\.mlp\.w3\.": ".mlp.fc2."}
    names |= {r"^register_tokens$": "reg_token"}
    mapped = _renamed(state, _rewriter(names))
    if "reg_token" in mapped.state and "pos_embed" in mapped.state:
        token, positions = mapped.state["cls_token"], mapped.state["pos_embed"]
        return mapped._replace(
            state=mapped.state | {"cls_token": token + positions[:, :1], "pos_embed": positions[:, 1:]}
        )
    return mapped


def _dinov3(state: State) -> Mapped:
    """DINOv3 has storage tokens, computed positions, and a bias of keys that is masked; timm drops a bias of 0."""
    names = {r"^storage_tokens$": "reg_token", r"\.ls([12])\.gamma$": r".gamma_\1", r"\.mlp\.w1\.": ".mlp.fc1_g."}
    names |= {r"\.mlp\.w2\.": ".mlp.fc1_x.", r"\.mlp\.w3\.": ".mlp.fc2."}
    computed = re.compile(r"\.(?:periods|bias_mask)$|^(?:local_cls_norm|projectors)\.")
    left = [key for key in state if computed.search(key)]
    biases = {key: value for key, value in state.items() if key.endswith(".attn.qkv.bias")}
    kept = {key: value for key, value in state.items() if key not in left and key not in biases}
    renamed = _renamed(kept, _rewriter(names))
    parts = {key: (query, value) for key, bias in biases.items() for query, _, value in [bias.chunk(3)]}
    if not any(bool(part.any()) for pair in parts.values() for part in pair):
        return renamed._replace(left=[*left, *biases])
    for key, (query, value) in parts.items():
        block = key.removesuffix("qkv.bias")
        renamed.state.update({f"{block}q_bias": query, f"{block}v_bias": value})
        renamed.pairs.extend((key, f"{block}{part}_bias") for part in "qv")
    return renamed._replace(left=left)


def _transformers_dinov2(state: State) -> Mapped:
    """With registers, or with the gated MLP of ViT-g, as without them."""
    mapped = transformers.MAPS["dinov2"].restore(state)
    own = {"embeddings.register_tokens": "register_tokens", "weights_in": "w12", "weights_out": "w3"}
    names = {re.escape(old): new for old, new in own.items()} | {r"^encoder\.layer\.": "blocks."}
    over = [key for key in mapped.left if any(name in key for name in own)]
    kept = mapped.state | {_rewriter(names)(key): state[key] for key in over}
    found = _dinov2(kept)
    return found._replace(
        pairs=[*mapped.pairs, *((key, key) for key in over)], left=[key for key in mapped.left if key not in over]
    )


def _official_convnext(state: State) -> Mapped:
    """Theirs counts the stem among what downsamples, and has convolutions of one pixel as linear layers, as timm's."""
    names = {r"^downsample_layers\.0\.": "stem.", r"^downsample_layers\.(\d+)\.": r"stages.\1.downsample."}
    names |= {r"^stages\.(\d+)\.(\d+)\.": r"stages.\1.blocks.\2.", r"\.dwconv\.": ".conv_dw."}
    names |= {r"\.pwconv(\d)\.": r".mlp.fc\1.", r"^norms?(?:\.3)?\.(?=weight|bias)": "head.norm."}
    left = [key for key in state if re.match(r"norms\.[0-2]\.", key)]  # DINOv3's last norm has two names
    twice = [key for key in state if key.startswith("norms.3.") and key.replace("norms.3", "norm") in state]
    kept = {key: value for key, value in state.items() if key not in (*left, *twice)}
    return _renamed(kept, _rewriter(names))._replace(left=[*left, *twice])


def _rewriter(names: Mapping[str, str]) -> Callable[[str], str]:
    """Rewrite a name by patterns, one after the other."""

    def rewrite(key: str) -> str:
        for pattern, new in names.items():
            key = re.sub(pattern, new, key)
        return key

    return rewrite


def _renamed(state: State, rename: Callable[[str], str]) -> Mapped:
    pairs = [(key, rename(key)) for key in state]
    return Mapped({new: state[old] for old, new in pairs}, pairs, [])


def _shared_bias(state: State) -> Mapped:
    """BEiT's pretraining has one table of relative positions, timm's model one in each block."""
    shared = "rel_pos_bias.relative_position_bias_table"
    renamed = {key: value for key, value in state.items() if not key.startswith("rel_pos_bias.")}
    pairs = [(key, key) for key in renamed]
    for key in [key for key in state if re.fullmatch(r"blocks\.\d+\.norm1\.weight", key)]:
        target = key.replace("norm1.weight", "attn.relative_position_bias_table")
        renamed[target] = state[shared].clone()
        pairs.append((shared, target))
    return Mapped(renamed, pairs, [])


_SEQUENTIAL = KeyMap(  # lightly's backbone is nn.Sequential(*resnet.children())
    Rule(("conv1.weight",), ("0.weight",)),
    *renames({"bn1.{n}": "1.{n}"}),
    *(Rule((f"layer{stage}.{{any}}",), (f"{stage + 3}.{{any}}",)) for stage in range(1, 5)),
)

VOCABULARIES = (
    Vocabulary("torchvision", r"^encoder\.layers\.encoder_layer_0\.", torchvision.MAPS["vision_transformer"].restore),
    Vocabulary("torchvision", r"^features\.1\.0\.attn\.", torchvision.MAPS["swin_transformer"].restore),
    Vocabulary("torchvision", r"^features\.1\.0\.block\.", torchvision.MAPS["convnext"].restore),
    Vocabulary("transformers", r"^encoder\.layer\.0\.layer_scale1\.", _transformers_dinov2),
    Vocabulary("transformers", r"^encoder\.layer\.0\.lambda_1$", transformers.MAPS["beit"].restore),
    Vocabulary("transformers", r"^encoder\.layer\.0\.layernorm_before\.", transformers.MAPS["vit"].restore),
    Vocabulary("transformers", r"^encoder\.layers\.0\.blocks\.0\.attention\.self\.", transformers.MAPS["swin"].restore),
    Vocabulary("transformers", r"^embedder\.embedder\.", transformers.MAPS["resnet"].restore),
    Vocabulary("transformers", r"^encoder\.stages\.0\.layers\.0\.dwconv\.", transformers.MAPS["convnext"].restore),
    Vocabulary("transformers", r"^encoder\.layers\.0\.patch_embedding\.", transformers.MAPS["pvt_v2"].restore),
    Vocabulary("OpenMMLab", r"^layers\.0\.ln1\.", openmmlab.MAPS["vision_transformer"].restore),
    Vocabulary("OpenMMLab", r"^stages\.0\.blocks\.0\.attn\.w_msa\.", openmmlab.MAPS["swin_transformer"].restore),
    Vocabulary("OpenMMLab", r"^layers\.0\.1\.0\.attn\.attn\.", openmmlab.MAPS["pvt_v2"].restore),
    Vocabulary("Swin's paper", r"^layers\.0\.downsample\.reduction\.", _official_swin),
    Vocabulary("BEiT's paper", r"^rel_pos_bias\.relative_position_bias_table$", _shared_bias),
    Vocabulary("DINOv2, in chunks", r"^blocks\.0\.0\.ls1\.gamma$", _dinov2),
    Vocabulary("DINOv2", r"^register_tokens$|^blocks\.0\.mlp\.w12\.", _dinov2),
    Vocabulary("DINOv3", r"^storage_tokens$", _dinov3),
    Vocabulary("ConvNeXt's paper", r"^downsample_layers\.0\.0\.weight$", _official_convnext),
    Vocabulary("nn.Sequential of a ResNet", r"^4\.0\.conv1\.weight$", _SEQUENTIAL.restore),
)


def to_timm(state: State) -> tuple[str, Mapped]:
    """Say whose names these are, and rename the weights to timm's; timm's own, and those that nobody knows, stay."""
    for vocabulary in VOCABULARIES:
        if any(re.search(vocabulary.mark, key) for key in state):
            return vocabulary.name, vocabulary.to_timm(state)
    return "timm", Mapped(dict(state), [(key, key) for key in state], [])
