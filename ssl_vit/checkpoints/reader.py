"""Files of weights are opened without running what is in them."""

from __future__ import annotations

import argparse
import pathlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ssl_vit.checkpoints.hub import fetch, is_hub_id
from ssl_vit.errors import UserError


class _Settings(dict[str, Any]):
    """Stands for the settings classes that trainers pickle beside their weights; holds what it is given."""

    def __setstate__(self, state: Any) -> None:
        self["state"] = state


# What may lie in a checkpoint besides tensors and plain values; none of it runs anything.
_HARMLESS: list[Any] = [argparse.Namespace, defaultdict, dict, pathlib.PosixPath]
_HARMLESS += [(_Settings, name) for name in ("yacs.config.CfgNode", "lightning_fabric.utilities.data.AttributeDict")]
_HARMLESS += [
    (_Settings, f"{package}.utilities.parsing.AttributeDict") for package in ("pytorch_lightning", "lightning")
]

Document = dict[str, Any]
METADATA = "__metadata__"  # the entry of a safetensors that holds no tensor, as in the file itself


def read_document(path: str | Path) -> tuple[Path, Document]:
    """Read the file of weights that `path` means, and return it with all that is in it; nothing in it is run.

    path: a .safetensors, .pth, .pt, .ckpt or .bin file, a folder of timm's or transformers' with one, or a hub id.

    Raises:
        UserError: no such file, not readable as weights, or a pickle that asks for more than tensors and plain values.
    """
    file = weights_file(path)
    try:
        if file.suffix == ".safetensors":
            return file, _safetensors(file)
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: not readable as weights ({said}); give a .safetensors or .pth file") from error
    except Exception as error:  # torch raises pickle's errors, of several types, for what weights_only forbids
        raise UserError(
            f"{file}: refused, nothing was run: {_forbidden(file, error)}; save the model's state_dict alone"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}, expected a dict of tensors; save the state_dict")
    return file, content


def _safetensors(file: Path) -> Document:
    with safe_open(file, "pt") as opened:
        return {METADATA: opened.metadata() or {}, **{key: opened.get_tensor(key) for key in opened.keys()}}  # noqa: SIM118  # it is no dict


def weights_file(path: str | Path) -> Path:
    """Find the file of weights that `path` means: itself, or that in a run's, timm's, transformers' or hub's folder."""
    path = fetch(path) if is_hub_id(path) else Path(path)
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"{path}: no such file or folder; give a .safetensors or .pth file, or a folder with one")
        return path
    for folder in (path / "export", path):  # of a run, or timm's or transformers' own
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (folder / name).is_file():
                return folder / name
    raise UserError(
        f"{path}: holds neither model.safetensors nor pytorch_model.bin; give a finished run, or a file of weights"
    )


def _forbidden(file: Path, error: Exception) -> str:
    """What a pickle asks for, found without running it; a file that is no pickle at all has no such list."""
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            wanted = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # too old or too broken to be looked through: what torch said must do
        wanted = []
    if wanted:
        return f"the pickle asks for {', '.join(wanted[:3])}{' …' * (len(wanted) > 3)}, which could run code"
    return " ".join(str(error).split())[:200]


def tensors(document: Document) -> dict[str, Tensor]:
    """Return the tensors of a document that lie at its top."""
    return {key: value for key, value in document.items() if isinstance(value, Tensor)}
