"""MMDetection and MMPretrain get the weights of ViT, Swin, ResNet and PVT v2 under ``backbone.``.

Both need a compiled mmcv that no current Python has, so that their names are checked against a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.checkpoints.names.openmmlab import MAPS
from ssl_vit.errors import UserError
from ssl_vit.export import structure
from ssl_vit.export.target import KeyPairs, Verified, run_snippet, same_weights, to_library_names, weights_of

FILE = "model.pth"
_PREFIX = "backbone."


def write(backbone: AdaptedBackbone, folder: Path, description: Mapping[str, Any]) -> KeyPairs:
    """Write model.pth: a state_dict whose names start with ``backbone.``."""
    if backbone.info.family == "pvt_v2" and structure.pvt_v2(backbone).linear:
        raise UserError(f"{backbone.info.name}: MMDetection has no linear attention; use --to timm or --to onnx")
    mapped = to_library_names(backbone, MAPS, "MMDetection", backbone.info.family, set())
    state = {_PREFIX + key: value.contiguous() for key, value in mapped.state.items()}
    torch.save({"state_dict": state}, folder / FILE)
    return [(ours, _PREFIX + theirs) for ours, theirs in mapped.pairs]


def snippet(folder: Path, backbone: AdaptedBackbone) -> str:
    """Return the parts of a config that name the file; mean and std are of pixels from 0 to 255."""
    info = backbone.info
    mean, std = ([round(255 * value, 3) for value in colour] for colour in (info.mean, info.std))
    path = str(Path(folder).absolute() / FILE)
    return "\n".join(
        [
            f"init_cfg = dict(type='Pretrained', checkpoint={path!r}, prefix='backbone.')",
            "model = dict(backbone=dict(init_cfg=init_cfg))",
            f"data_preprocessor = dict(mean={mean}, std={std}, bgr_to_rgb=True)",
        ]
    )


def verify(folder: Path, backbone: AdaptedBackbone) -> Verified:
    """Read the file back: each name must be MMDetection's, and each weight turn back into ours."""
    run_snippet(snippet(folder, backbone), "MMDetection")
    state = torch.load(folder / FILE, weights_only=True)["state_dict"]
    theirs = {key.removeprefix(_PREFIX): value for key, value in state.items()}
    return same_weights("MMDetection", weights_of(backbone), MAPS[backbone.info.family].restore(theirs).state)
