"""Whose names a backbone's weights have, and how they become timm's."""

from __future__ import annotations

import re
from collections.abc import Callable
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


def _chunked(state: State) -> Mapped:
    """DINOv2 trains in chunks of blocks, ``blocks.1.7.norm1``: the second number counts the blocks."""
    return _renamed(state, lambda key: re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key))


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
    Vocabulary("transformers", r"^encoder\.layer\.0\.layer_scale1\.", transformers.MAPS["dinov2"].restore),
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
    Vocabulary("DINOv2, in chunks", r"^blocks\.0\.0\.norm1\.", _chunked),
    Vocabulary("nn.Sequential of a ResNet", r"^4\.0\.conv1\.weight$", _SEQUENTIAL.restore),
)


def to_timm(state: State) -> tuple[str, Mapped]:
    """Say whose names these are, and rename the weights to timm's; timm's own, and those that nobody knows, stay."""
    for vocabulary in VOCABULARIES:
        if any(re.search(vocabulary.mark, key) for key in state):
            return vocabulary.name, vocabulary.to_timm(state)
    return "timm", Mapped(dict(state), [(key, key) for key in state], [])
