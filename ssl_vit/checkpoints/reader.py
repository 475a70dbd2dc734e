"""Files of weights are opened without running what is in them."""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ssl_vit.checkpoints.content import begins_like_safetensors, no_weights
from ssl_vit.checkpoints.hub import fetch, is_hub_id
from ssl_vit.checkpoints.sums import check_sums
from ssl_vit.errors import UserError
from ssl_vit.files import sha256


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


_INDEX = ".index.json"  # how the name ends of a file that lists the shards of weights


def read_document(path: str | Path) -> tuple[Path, Document]:
    """Read the file of weights that `path` means, and return it with all that is in it; nothing in it is run.

    path: a .safetensors, .pth, .pt, .ckpt or .bin file, the index of such files, a folder of timm's or transformers'
    with one, or a hub id. Checksums that lie beside it must be its own.

    Raises:
        UserError: no such file, damaged, no weights, or a pickle that asks for more than tensors and plain values.
    """
    file, content = weights_file(path), Document()
    for shard in files_of(file):
        check_sums(shard)
        content |= _read(shard)
    return file, content


def files_of(file: Path) -> list[Path]:
    """List the files that hold the weights of a file: itself, or the shards that an index names.

    Raises:
        UserError: an index that names none, or one that is not there.
    """
    if not file.name.endswith(_INDEX):
        return [file]
    try:
        shards = sorted(set(json.loads(file.read_bytes())["weight_map"].values()))
        paths = [file.with_name(shard) for shard in shards]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: no index of weights ({error}); give the files of weights themselves") from None
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        raise UserError(
            f"{file}: an index of {len(paths)} files of weights, of which {len(missing)} are not beside it "
            f"({', '.join(missing[:2])}{' …' * (len(missing) > 2)}); bring them there"
        )
    return paths


def _read(file: Path) -> Document:
    if said := no_weights(file):
        raise UserError(f"{file}: {said}")
    try:
        if begins_like_safetensors(file) or (file.suffix == ".safetensors" and not _is_pickle(file)):
            return _safetensors(file)
        # of a path torch would look at the ending
        with file.open("rb") as opened, torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(opened, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: not readable as weights ({said}); give a .safetensors or .pth file") from error
    except Exception as error:  # torch raises pickle's errors, of several types, for what weights_only forbids
        raise UserError(
            f"{file}: refused, nothing was run: {_forbidden(file, error)}; save the model's state_dict alone"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}, expected a dict of tensors; save the state_dict")
    return content


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(2) in (b"PK", b"\x80\x02")


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
            for found in (folder / name, folder / f"{name}{_INDEX}"):
                if found.is_file():
                    return found
    raise UserError(
        f"{path}: holds neither model.safetensors nor pytorch_model.bin; give a finished run, or a file of weights"
    )


def digest(path: str | Path) -> str:
    """The sha256 of the weights' file comes in hex, of several files that of all; UserError where there is none."""
    found = [sha256(file) for file in files_of(weights_file(path))]
    return found[0] if len(found) == 1 else hashlib.sha256("\n".join(found).encode()).hexdigest()


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
