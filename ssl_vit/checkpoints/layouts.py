"""The files of each method and library have a layout: where the backbone lies in them, under what prefix."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from torch import Tensor

from ssl_vit.adapt.lora import merged_state
from ssl_vit.checkpoints.description import OURS
from ssl_vit.checkpoints.reader import Document, tensors


class CheckpointLayout(NamedTuple):
    """A layout says how one kind of checkpoint looks from outside."""

    name: str
    inside: tuple[str, ...]  # the entry that holds the weights, the first that is there; "" is the file itself
    prefixes: tuple[str, ...]  # patterns of what stands before the backbone's names, the first that some name has
    entries: tuple[str, ...] = ()  # what the file must have beside
    marks: tuple[str, ...] = ()  # patterns, each of which some name of a weight must have


_RANKS = r"(?:module\.|_orig_mod\.)*"  # what DistributedDataParallel and torch.compile put before names
_TEACHER = ("teacher", "student")
LIKE_DEIT = "saved as DeiT and MAE are"
_OUR_RUN = "ssl_vit's checkpoint of a run"

LAYOUTS = (  # the particular before the general
    CheckpointLayout("iBOT (arXiv 2111.07832)", _TEACHER, (_RANKS + r"backbone\.",), ("teacher", "ibot_loss")),
    CheckpointLayout("iBOT (arXiv 2111.07832)", ("state_dict", ""), ("",), (), (r"^masked_embed$",)),
    CheckpointLayout(
        "EsViT (arXiv 2106.09785)", _TEACHER, (_RANKS + r"backbone\.", _RANKS), ("teacher",), (r"^\S*head_dense\.",)
    ),
    CheckpointLayout("DINO (arXiv 2104.14294)", _TEACHER, (_RANKS + r"backbone\.",), ("teacher", "dino_loss")),
    CheckpointLayout("EsViT (arXiv 2106.09785)", _TEACHER, (_RANKS,), ("teacher", "dino_loss")),
    CheckpointLayout(
        "TIPSv2 (arXiv 2604.12012)",
        ("model", ""),
        (r"vision_encoder\.",),
        marks=(r"^vision_encoder\.(?:register_tokens|mask_token)$",),
    ),
    CheckpointLayout(
        "EUPE (arXiv 2603.22387)",
        ("teacher", "model", ""),
        (r"backbone\.", ""),
        marks=(r"\bprojectors\.", r"\bstorage_tokens$|^(?:backbone\.)?downsample_layers\.0\."),
    ),
    CheckpointLayout(
        "DINOv3 (arXiv 2508.10104)", ("teacher", "model", ""), (r"backbone\.", ""), (), (r"\bstorage_tokens$",)
    ),
    CheckpointLayout(
        "DINOv2 (arXiv 2304.07193)", ("teacher",), (r"backbone\.",), ("teacher",), (r"^(?:dino|ibot)_head\.",)
    ),
    CheckpointLayout("DINOv2 (arXiv 2304.07193)", ("model", ""), ("",), (), (r"\bls1\.gamma$", r"^mask_token$")),
    CheckpointLayout("DINOv2 (arXiv 2304.07193)", ("model", ""), ("",), (), (r"\bls1\.gamma$", r"^register_tokens$")),
    CheckpointLayout(
        "DINOv3 or EUPE", ("state_dict", "model", ""), (_RANKS,), (), (r"^reg_token$", r"^blocks\.0\.gamma_1$")
    ),
    CheckpointLayout("MoBY (arXiv 2105.04553)", ("model",), (_RANKS + r"encoder\.",), ("model",), (r"\bencoder_k\.",)),
    CheckpointLayout(
        "BEiT, pretrained (arXiv 2106.08254)", ("model", ""), ("",), (), (r"^rel_pos_bias\.", r"^mask_token$")
    ),
    CheckpointLayout("BEiT (arXiv 2106.08254)", ("model", "module", ""), ("",), (), (r"^blocks\.0\.attn\.q_bias$",)),
    CheckpointLayout(
        "DETReg (arXiv 2106.04550)", ("model",), (r"backbone\.0\.body\.",), ("model",), (r"^feature_embed\.layers\.",)
    ),
    CheckpointLayout(
        "DETR or Deformable DETR", ("model",), (r"backbone\.0\.body\.",), ("model",), (r"^backbone\.0\.body\.",)
    ),
    CheckpointLayout(
        "MoCo v3 (arXiv 2104.02057)", ("state_dict",), (_RANKS + r"base_encoder\.",), (), (r"\bbase_encoder\.",)
    ),
    CheckpointLayout("MAE (arXiv 2111.06377)", ("model", ""), ("",), (), (r"^decoder_blocks\.", r"^mask_token$")),
    CheckpointLayout(
        "transformers",
        ("",),
        (r"(?:vit|dinov2|beit|swin|resnet|convnext|pvt_v2)\.", ""),
        marks=(r"\bembeddings\.patch_embeddings\.|\bembedder\.embedder\.|\bpatch_embedding\.layer_norm\.",),
    ),
    CheckpointLayout(
        "solo-learn",
        ("state_dict",),
        (r"backbone\.",),
        ("state_dict",),
        (r"^backbone\.", r"^(?:momentum_backbone|classifier|momentum_classifier)\."),
    ),
    CheckpointLayout(
        "MMPretrain or MMDetection", ("state_dict",), (r"backbone\.",), ("state_dict", "meta"), (r"^backbone\.",)
    ),
    CheckpointLayout(
        "MMPretrain or MMDetection",
        ("state_dict",),
        (r"backbone\.",),
        ("state_dict",),
        (r"^backbone\.(?:layers\.0\.ln1|stages\.0\.blocks\.0\.attn\.w_msa|layers\.0\.1\.0\.attn\.attn)\b",),
    ),
    CheckpointLayout(
        "lightly",
        ("state_dict",),
        (r"teacher_backbone\.(?:vit\.)?", r"backbone\.(?:vit\.)?", r"student_backbone\.(?:vit\.)?"),
        ("state_dict",),
        (
            r"^(?:student_|teacher_)?backbone\.",
            r"^(?:\w+_)?(?:projection_head|prediction_head|head)\w*\.|^(?:\w+_)?backbone\.vit\.",
        ),
    ),
    CheckpointLayout(
        "Lightning",
        ("state_dict",),
        (r"(?:model|backbone|encoder|net)\.", ""),
        ("state_dict", "pytorch-lightning_version"),
    ),
    CheckpointLayout("torchvision", ("",), ("",), (), (r"^encoder\.layers\.encoder_layer_0\.|^features\.0\.0\.",)),
    CheckpointLayout("torchvision or timm", ("",), ("",), (), (r"^layer1\.0\.conv1\.", r"^fc\.")),
    CheckpointLayout(
        "a larger model", ("state_dict", "model", ""), (r"(?:module\.)?backbone\.",), (), (r"^(?:module\.)?backbone\.",)
    ),
    CheckpointLayout(
        LIKE_DEIT,
        ("model",),
        (_RANKS,),
        ("model",),
        (r"^(?:module\.)?cls_token$", r"^(?:module\.)?blocks\.0\.attn\.qkv\."),
    ),
    CheckpointLayout("timm", ("state_dict", "model", ""), (_RANKS,)),
)
GENERAL = {"Lightning", "a larger model", "timm", LIKE_DEIT}
"""Layouts that say little of what they hold, so that other entries and prefixes are looked at too."""


class Recognised(NamedTuple):
    """The file was recognised: its layout's name, the backbone's weights without their prefix, and the other names."""

    layout: str
    state: dict[str, Tensor]
    left: list[str]


def recognise(document: Document) -> Recognised | None:
    """Find the first layout that fits, and what it holds; None for a document without weights."""
    if isinstance(ours := document.get(OURS), dict) and isinstance(document.get("state_dict"), dict):
        found = _under(re.compile(re.escape(str(ours.get("exported")))), tensors(document["state_dict"]), _OUR_RUN)
        return found and found._replace(state=merged_state(found.state))
    for layout in LAYOUTS:
        inside = next((entry for entry in layout.inside if not entry or isinstance(document.get(entry), dict)), None)
        if inside is None or not all(entry in document for entry in layout.entries):
            continue
        state = tensors(document[inside] if inside else document)
        if not all(_some(mark, state) for mark in layout.marks):
            continue
        for prefix in map(re.compile, layout.prefixes):
            if found := _under(prefix, state, layout.name):
                return found
    return None


def _under(prefix: re.Pattern[str], state: dict[str, Tensor], layout: str) -> Recognised | None:
    """The weights whose names begin so, without that beginning."""
    found = {key[match.end() :]: value for key, value in state.items() if (match := prefix.match(key))}
    return Recognised(layout, found, [key for key in state if not prefix.match(key)]) if found else None


def _some(pattern: str, keys: Collection[str]) -> bool:
    return any(re.search(pattern, key) for key in keys)
