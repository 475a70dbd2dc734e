"""A file of weights describes itself by timm's config.json, beside the file or inside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ssl_vit.backbones.anatomy import Argument
from ssl_vit.backbones.backbone import Colour
from ssl_vit.backbones.layers import Size
from ssl_vit.checkpoints.reader import METADATA, Document
from ssl_vit.errors import UserError

OURS = "ssl_vit"  # the entry of a run's checkpoint that says which of its weights are exported, and as what


class Description(NamedTuple):
    """The description names an architecture, and the images that it was trained on."""

    name: str  # as `ssl-vit list backbones` prints it
    model_args: dict[str, Argument]  # without the size
    size: Size  # height, width, pixels
    mean: Colour  # of images in [0, 1]
    std: Colour
    plugin: Mapping[str, Any] | None = None  # where the architecture is from, if neither timm nor we can build it
    outputs: tuple[float, ...] | None = None  # what it gave for an image of noise; see ``fingerprint``
    ours: bool = False  # whether a run of ours wrote it


def read_description(file: Path, document: Document) -> Description | None:
    """Read it from config.json beside the file, a safetensors' metadata or a run's checkpoint; None where none says it.

    Raises:
        UserError: something that begins like timm's config.json and doesn't go on like it.
    """
    beside = file.parent / "config.json"
    inside = (document.get(METADATA) or {}).get("config")
    ours = document.get(OURS)
    if isinstance(ours, dict):
        return _description(ours.get("config"), f"{file}: {OURS}")
    if inside is not None:
        return _description(_json(inside, f"{file}: config"), f"{file}: config")
    if beside.is_file():
        return _description(_json(beside.read_text(encoding="utf-8", errors="replace"), str(beside)), str(beside))
    return None


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}); restore or remove it") from error


def _description(config: Any, where: str) -> Description | None:
    """None for what is not timm's, as the config.json of transformers is not."""
    if not isinstance(config, dict) or not isinstance(name := config.get("architecture"), str):
        return None
    trained = config.get("pretrained_cfg", config)  # files of before timm 0.9 have it all on one level
    try:
        model_args = {key: value for key, value in (config.get("model_args") or {}).items() if not _usual(key, value)}
        size = model_args.pop("img_size", None) or trained["input_size"][1:]
        height, width = (size, size) if isinstance(size, int) else size
        mean, std = _colour(trained["mean"]), _colour(trained["std"])
        plugin = dict(config["plugin"]) if "plugin" in config else None
        outputs = tuple(map(float, config["outputs"])) if "outputs" in config else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where}: {error} is missing or wrong; expected timm's config.json; export again") from None
    size, ours = (int(height), int(width)), _is_ours(config.get(OURS))
    return Description(name, model_args, size, mean, std, plugin, outputs, ours)


def _is_ours(said: Any) -> bool:
    """Whether a run of ours trained the weights; those that were only written anew say which file they are from."""
    return isinstance(said, dict) and "weights_sha256" not in said


def _usual(key: str, value: Any) -> bool:
    """What every backbone here has and none may be given: no classifier, and three channels."""
    return key == "num_classes" or (key == "in_chans" and value == 3)


def prepared(file: Path) -> tuple[Colour, Colour] | None:
    """Mean and deviation by the preprocessor_config.json of transformers beside the file."""
    beside = file.parent / "preprocessor_config.json"
    if not beside.is_file():
        return None
    config = _json(beside.read_text(encoding="utf-8", errors="replace"), str(beside))
    try:
        return _colour(config["image_mean"]), _colour(config["image_std"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{beside}: {error} is missing or wrong; restore or remove it") from None


def _colour(values: Any) -> Colour:
    red, green, blue = map(float, values)
    return red, green, blue
