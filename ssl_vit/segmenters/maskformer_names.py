"""The names that transformers' MaskFormerForInstanceSegmentation has for the weights of our MaskFormer's head."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_NAMES = (  # ours, as patterns, and theirs
    (r"pixel_decoder\.stem\.", r"model.pixel_level_module.decoder.fpn.stem."),
    (r"pixel_decoder\.laterals\.(\d+)\.", r"model.pixel_level_module.decoder.fpn.layers.\1.proj."),
    (r"pixel_decoder\.blocks\.(\d+)\.", r"model.pixel_level_module.decoder.fpn.layers.\1.block."),
    (r"pixel_decoder\.mask_features\.", r"model.pixel_level_module.decoder.mask_projection."),
    (r"input_proj\.", r"model.transformer_module.input_projection."),
    (r"query_embed\.", r"model.transformer_module.queries_embedder."),
    (r"decoder\.norm\.", r"model.transformer_module.decoder.layernorm."),
    (r"decoder\.layers\.(\d+)\.", r"model.transformer_module.decoder.layers.\1."),
    (r"class_embed\.", r"class_predictor."),
    (r"mask_embed\.layers\.(\d+)\.", r"mask_embedder.\1.0."),
)
_WITHIN = (  # of a layer of the decoder
    ("self_attn.out_proj.", "self_attn.o_proj."),
    ("multihead_attn.out_proj.", "encoder_attn.o_proj."),
    ("multihead_attn.", "encoder_attn."),
    ("linear1.", "mlp.fc1."),
    ("linear2.", "mlp.fc2."),
    ("norm1.", "self_attn_layer_norm."),
    ("norm2.", "encoder_attn_layer_norm."),
    ("norm3.", "final_layer_norm."),
)
_PARTS = ("q_proj", "k_proj", "v_proj")  # of an attention's in_proj, one below the other


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a MaskFormer; those of its backbone (``levels.``), which have names of their own, are left
    out.

    transformers' own weight of "nothing" in the loss (``criterion.empty_weight``) is no weight of the network.
    """
    found = dict[str, Tensor]()
    for name, weight in state.items():
        if name.startswith("levels."):
            continue
        theirs = _theirs(name)
        if ".in_proj_" not in name:
            found[theirs] = weight
            continue
        for part, own in zip(_PARTS, weight.chunk(3), strict=True):
            found[theirs.replace("in_proj_", f"{part}.")] = own
    return found


def from_transformers(weights: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename transformers' weights to those of a MaskFormer whose weights are called as in `like`, less its backbone's.

    Raises:
        KeyError: one of them is missing.
    """
    found = dict[str, Tensor]()
    for name in like:
        if name.startswith("levels."):
            continue
        theirs = _theirs(name)
        parts = [theirs.replace("in_proj_", f"{part}.") for part in _PARTS] if ".in_proj_" in name else [theirs]
        found[name] = torch.cat([weights[part] for part in parts])
    return found


def _theirs(name: str) -> str:
    for ours, theirs in _NAMES:
        renamed, count = re.subn(f"^{ours}", theirs, name)
        if count:
            break
    else:
        raise KeyError(name)
    for ours, theirs in _WITHIN if name.startswith("decoder.layers.") else ():
        if ours in renamed:
            return renamed.replace(ours, theirs)
    return renamed
