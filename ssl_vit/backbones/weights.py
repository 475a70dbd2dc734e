"""Reading a file of weights into a timm model: every key and every shape must fit."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ssl_vit.backbones.layout import TimmModel
from ssl_vit.errors import UserError

_log = logging.getLogger(__name__)


def load_weights(model: TimmModel, name: str, path: str | Path) -> None:
    """Load a .safetensors or .pth file, or a folder in timm's layout, into the timm model `name`.

    The keys of the published classifier may be in the file; they are left out and named in the log.

    Errors: UserError for a missing or unreadable file, another architecture, and the first key that doesn't fit.
    """
    path = Path(path)
    file = _file_in(path, name) if path.is_dir() else path
    state = _read(file)
    expected = model.state_dict()
    heads = [key for key in state if key not in expected and _of_classifier(model, key)]
    if heads:
        _log.warning("%s: left out the keys of its head: %s", file, ", ".join(heads))
        state = {key: value for key, value in state.items() if key not in heads}
    _compare(file, name, state, expected)
    model.load_state_dict(state, strict=True)


def _file_in(folder: Path, name: str) -> Path:
    """The file of weights in timm's folder, whose config.json names the architecture."""
    config = folder / "config.json"
    if config.is_file():
        architecture = json.loads(config.read_text(encoding="utf-8")).get("architecture")
        if architecture != name:
            raise UserError(f"{config}: weights of {architecture}, expected {name}; create {architecture} instead")
    for candidate in ("model.safetensors", "pytorch_model.bin"):
        if (folder / candidate).is_file():
            return folder / candidate
    raise UserError(f"{folder}: holds neither model.safetensors nor pytorch_model.bin; give a folder in timm's layout")


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, by key; a checkpoint's "state_dict" or "model" is unwrapped."""
    if not file.is_file():
        raise UserError(f"{file}: no such file; give a .safetensors or .pth file or a folder in timm's layout")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{file}: not readable as weights ({error}); give a .safetensors or .pth file") from error
    except Exception as error:  # torch raises pickle's errors, of several types, for what weights_only forbids
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: holds more than tensors ({reason}); save the model's state_dict alone") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file}: expected a dict of tensors; save the model's state_dict alone")
    return state


def _of_classifier(model: TimmModel, key: str) -> bool:
    classifier = model.pretrained_cfg.get("classifier") or ()
    names = (classifier,) if isinstance(classifier, str) else classifier
    return any(key.startswith(f"{name}.") for name in names)


def _compare(file: Path, name: str, state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The first key that doesn't fit is the user's error."""
    for key, value in expected.items():
        if key not in state:
            raise UserError(f"{file}: {key} {tuple(value.shape)} of {name} is missing; is it another model's file?")
        if state[key].shape != value.shape:
            found, wanted = tuple(state[key].shape), tuple(value.shape)
            raise UserError(
                f"{file}: {key} is {found}, {name} expects {wanted}; match image_size and model_args to the file"
            )
    for key, value in state.items():
        if key not in expected:
            raise UserError(f"{file}: {key} {tuple(value.shape)} is not part of {name}; is it another model's file?")
