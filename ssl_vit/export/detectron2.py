"""Detectron2's ResNet, ViTDet and Swin get their weights as a .pkl that its DetectionCheckpointer matches by name.

Detectron2 is on no package index, so that its names are checked against a table and nothing is loaded.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.checkpoints.names.detectron2 import MAPS, NOT_THEIRS
from ssl_vit.export.target import KeyPairs, Verified, run_snippet, same_weights, to_library_names, weights_of

FILE = "model.pkl"


def write(backbone: AdaptedBackbone, folder: Path, description: Mapping[str, Any]) -> KeyPairs:
    """Write model.pkl: numpy arrays under Detectron2's names, and the flag by which it matches them to any model."""
    family = backbone.info.family
    mapped = to_library_names(backbone, MAPS, "Detectron2", family, NOT_THEIRS.get(family, set()))
    arrays = {key: value.numpy() for key, value in mapped.state.items()}
    content = {"model": arrays, "__author__": "ssl_vit", "matching_heuristics": True}
    (folder / FILE).write_bytes(pickle.dumps(content))
    return mapped.pairs


def snippet(folder: Path, backbone: AdaptedBackbone) -> str:
    """Return the settings of a config that starts from the file; mean and std are of pixels from 0 to 255."""
    info = backbone.info
    mean, std = ([round(255 * value, 3) for value in colour] for colour in (info.mean, info.std))
    lines = [f"settings = ['MODEL.WEIGHTS', {str(Path(folder).absolute() / FILE)!r}, 'INPUT.FORMAT', 'RGB']"]
    lines += [f"settings += ['MODEL.PIXEL_MEAN', {mean}, 'MODEL.PIXEL_STD', {std}]"]
    if info.family == "resnet":
        lines += ["settings += ['MODEL.RESNETS.STRIDE_IN_1X1', False]"]
    return "\n".join([*lines, "# cfg.merge_from_list(settings)"])


def verify(folder: Path, backbone: AdaptedBackbone) -> Verified:
    """Read the file back: each name must be Detectron2's, and each weight turn back into ours."""
    run_snippet(snippet(folder, backbone), "Detectron2")
    content = pickle.loads((folder / FILE).read_bytes())  # written by us a moment ago
    family = backbone.info.family
    state = {key: torch.from_numpy(value) for key, value in content["model"].items()}
    dropped = NOT_THEIRS.get(family, set())
    ours = {key: value for key, value in weights_of(backbone).items() if key not in dropped}
    return same_weights("Detectron2", ours, MAPS[family].restore(state).state)
