"""What was written with checksums is read by them: a folder's SHA256SUMS, and the .sha256 beside a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

from ssl_vit.errors import UserError
from ssl_vit.files import sha256

SUMS = "SHA256SUMS"
WEIGHTS, CONFIG = "model.safetensors", "config.json"  # what an export has, and lists
_BESIDE = (CONFIG, "preprocessor_config.json")  # what is read with a file of weights
_DIGEST = re.compile(r"\b[0-9a-fA-F]{64}\b")


def check_sums(file: Path) -> None:
    """Compare a file of weights, and what describes it, with the checksums that lie beside it, if any do.

    Raises:
        UserError: a file is not what was written, is missing, or the checksums themselves are damaged.
    """
    beside = file.with_name(f"{file.name}.sha256")
    if beside.is_file():
        if not (found := _DIGEST.search(_text(beside))):
            raise UserError(f"{beside}: holds no sha256, so that {file.name} can't be checked; restore or remove it")
        _compare(file, found[0], beside.name)
    if not (file.parent / SUMS).is_file():
        return
    listed = _listed(file.parent / SUMS)
    for name in (WEIGHTS, CONFIG) if file.name == WEIGHTS and _is_ours(file.with_name(CONFIG)) else ():
        if name not in listed:
            raise UserError(f"{file.with_name(SUMS)}: damaged (it does not list {name}); export again, or restore it")
    for name in (file.name, *_BESIDE):
        if name in listed:
            _compare(file.with_name(name), listed[name], SUMS)


def _compare(file: Path, expected: str, said_by: str) -> None:
    if not file.is_file():
        raise UserError(f"{file}: missing, but {said_by} lists it; restore it, or export again")
    if sha256(file) != expected.lower():
        raise UserError(
            f"{file}: damaged or changed after writing ({said_by} disagrees); restore it, or export again, or remove "
            f"{said_by} if the change was meant"
        )


def _listed(sums: Path) -> dict[str, str]:
    """The digests by name, of lines as sha256sum writes them."""
    lines = re.findall(r"(?m)^([0-9a-fA-F]{64}) [ *](?:\./)?(.+?)\r?$", _text(sums))
    return {name: digest for digest, name in lines}


def _is_ours(config: Path) -> bool:
    return config.is_file() and b'"ssl_vit"' in config.read_bytes()


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="replace")
