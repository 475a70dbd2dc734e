"""The backbone that is scored: of a run folder, or of a file or folder of weights of any layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.checkpoints.description import OURS
from ssl_vit.checkpoints.load import backbone_of_file
from ssl_vit.checkpoints.reader import METADATA, read_document, weights_file
from ssl_vit.checkpoints.sums import check_sums
from ssl_vit.data.values import Pixels
from ssl_vit.export.timm import CONFIG, read_config


def load_backbone(
    weights: Path | str,
    backbone: str | None = None,
    mean: Sequence[float] | str | None = None,
    std: Sequence[float] | str | None = None,
) -> Backbone:
    """Load the backbone of a run folder, or of a file or folder of weights in any layout that `ssl-vit inspect` knows.

    Loading is strict and executes nothing. The info of the backbone has the mean, deviation and size that it was
    trained with, as far as the file says them, and else what is usual. backbone: timm's name, where the file doesn't
    say the architecture; mean, std: of images in [0, 1], instead of those.

    Raises:
        UserError: nothing of that kind there, a file without a backbone's name, or weights that don't fit.
    """
    return backbone_of_file(weights, backbone, mean, std)


def pixels_of(weights: Path | str) -> Pixels | None:
    """How the values of a run's images became 8 bits; None for weights that are of no run of ours, or don't say."""
    file = weights_file(weights)
    check_sums(file)
    if (file.parent / CONFIG).is_file():
        config: Any = read_config(file.parent)
    else:
        document = read_document(file)[1]
        inside = (document.get(METADATA) or {}).get("config")
        config = json.loads(inside) if inside else (document.get(OURS) or {}).get("config")
    said = config.get(OURS) if isinstance(config, dict) else None
    return Pixels.of(said.get("pixels")) if isinstance(said, dict) else None


def role_of(weights: Path | str) -> str:
    """The role says which of a run's networks it is: "teacher" or "student"; "unknown" where the file doesn't say."""
    folder = weights_file(weights).parent
    description = read_config(folder).get("ssl_vit", {}) if (folder / CONFIG).is_file() else {}
    return str(description.get("encoder", "unknown"))
