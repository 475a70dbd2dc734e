"""RF-DETR, whose encoder is a ViT-S or ViT-B with LayerScale (DINOv2's, arXiv 2304.07193), gets its weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.checkpoints.colours import IMAGENET
from ssl_vit.checkpoints.names.transformers import MAPS
from ssl_vit.errors import RunFailed, UserError
from ssl_vit.export import structure
from ssl_vit.export.target import (
    KeyPairs,
    Verified,
    frozen,
    probe,
    run_snippet,
    same_weights,
    to_library_names,
    verified,
    warnings_unsaid,
    weights_of,
)

FILE = "model.pth"
_MAP = MAPS["dinov2"]
_PREFIX = "backbone.0.encoder.encoder."
_POSITIONS = "embeddings.position_embeddings"
_CLASSES = "class_embed.bias"  # it counts a checkpoint's classes by this one, whatever else is there
_ENCODERS = {(384, 12, 6, 4): "dinov2_windowed_small", (768, 12, 12, 4): "dinov2_windowed_base"}
"""RF-DETR's name, by width, depth, heads and the ratio of widths in a block."""


def write(backbone: AdaptedBackbone, folder: Path, description: Mapping[str, Any]) -> KeyPairs:
    """Write model.pth: a checkpoint that ``pretrain_weights`` takes; all but the encoder is still to be trained."""
    _encoder(backbone)
    mapped = to_library_names(backbone, {"vision_transformer": _MAP}, "RF-DETR", backbone.info.family, set())
    state = {_PREFIX + key: value for key, value in mapped.state.items()}
    state[_CLASSES] = torch.full((91,), -4.6)  # as it begins: COCO's classes, each with a probability of 0.01
    torch.save({"model": state}, folder / FILE)
    return [(ours, _PREFIX + theirs) for ours, theirs in mapped.pairs]


def snippet(folder: Path, backbone: AdaptedBackbone) -> str:
    """Return the Python of the smallest RF-DETR, which resizes the positions; larger ones take the same arguments."""
    path = str(Path(folder).absolute() / FILE)
    size = f"encoder={_encoder(backbone)!r}, patch_size={structure.vit(backbone).patch}"
    lines = ["from rfdetr import RFDETRNano", f"model = RFDETRNano(pretrain_weights={path!r}, {size})"]
    colours = backbone.info.mean, backbone.info.std
    if colours != IMAGENET:
        lines.append("# RF-DETR uses ImageNet's mean and deviation; these were trained with {} and {}".format(*colours))
    return "\n".join(lines)


def verify(folder: Path, backbone: AdaptedBackbone) -> Verified:
    """Where RF-DETR is installed, run the snippet and compare; else check that every weight turns back into ours."""
    if importlib.util.find_spec("rfdetr") is None:
        state = torch.load(folder / FILE, weights_only=True)["model"]
        theirs = {key.removeprefix(_PREFIX): value for key, value in state.items() if key != _CLASSES}
        return same_weights("RF-DETR", weights_of(backbone), _MAP.restore(theirs).state)
    consumer = f"RF-DETR {version('rfdetr')}"
    with warnings_unsaid():  # that a detector's other parts are missing, as they should be
        loaded = run_snippet(snippet(folder, backbone), consumer)["model"]
        _same_encoder(loaded, backbone, consumer)
        return _same_features(folder, backbone, consumer)


def _same_encoder(loaded: Any, backbone: AdaptedBackbone, consumer: str) -> None:
    """Every weight of ours is in the model of the snippet, but for positions, which it has resized."""
    found = loaded.model.model.backbone[0].encoder.encoder.state_dict()
    for key, value in _MAP.export(weights_of(backbone)).state.items():
        if key != _POSITIONS and not torch.equal(found[key].cpu(), value):
            raise RunFailed(f"{consumer} does not take {_PREFIX}{key} from this export")


def _same_features(folder: Path, backbone: AdaptedBackbone, consumer: str) -> Verified:
    """The last map of an RF-DETR with our grid; in a single window, for what attends elsewhere gives something else."""
    import rfdetr

    its = structure.vit(backbone)
    model = rfdetr.RFDETRNano(
        pretrain_weights=str(folder / FILE),
        encoder=_encoder(backbone),
        patch_size=its.patch,
        resolution=its.size[0],
        positional_encoding_size=its.size[0] // its.patch,
        num_windows=1,
        device="cpu",
    )
    images = probe(backbone)
    with torch.inference_mode():
        maps = model.model.model.backbone[0].encoder.eval()(images)
        return verified(consumer, [frozen(backbone)(images).patches], [maps[-1]])


def _encoder(backbone: AdaptedBackbone) -> str:
    """RF-DETR's name of the architecture; UserError where it has none."""
    name, keys = backbone.info.name, backbone.model.state_dict()
    if "blocks.0.ls1.gamma" in keys and "cls_token" in keys and "blocks.0.attn.qkv.bias" in keys:
        its = structure.vit(backbone)
        widths = (its.dim, its.depth, its.heads, its.hidden // its.dim)
        if widths in _ENCODERS and its.size[0] == its.size[1]:
            return _ENCODERS[widths]
    raise UserError(
        f"{name}: RF-DETR takes a ViT-S or ViT-B with LayerScale, as vit_small_patch14_dinov2, on square images; "
        f"use --to timm or --to onnx"
    )
