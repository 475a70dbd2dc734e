"""The weights of a run are handed to another library: written, loaded there and compared before they appear."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.module_adapter import ModuleBackbone
from ssl_vit.errors import RunFailed, UserError
from ssl_vit.export import REFUSED, TARGETS, card, timm
from ssl_vit.export.target import ExportTarget, KeyPairs, Verified
from ssl_vit.files import new_folder
from ssl_vit.spelling import did_you_mean


@dataclass(frozen=True)
class ExportResult:
    """The result says where the weights are, who has loaded them, and how to do it oneself."""

    folder: Path
    consumer: str  # name and version of the library that loaded them, or that their names were checked for
    max_difference: float | None  # of its outputs from ours, relative to the largest value; None: not loaded
    snippet: str  # the Python that loads them; it was run
    keys: list[tuple[str, str]] = field(default_factory=list)  # timm's names and what they became


def export(run: Path | str, to: str = "timm", out: Path | str | None = None) -> ExportResult:
    """Write a run's weights for another library, and let it load them; an export that does not verify never appears.

    Args:
        run: a run folder, which keeps its export in RUN/export.
        to: the library that will load the weights, one of ``TARGETS``.
        out: a folder that does not exist yet; without it RUN/export-TARGET, and for timm RUN/export as it is.

    Raises:
        UserError: an unknown target, a library that is not installed or has no such architecture, no export in the
            run, damaged weights, or ``out`` exists.
        RunFailed: the library cannot load the weights, or gives other outputs.
    """
    if to in REFUSED:
        raise UserError(f"--to {to}: no target: {REFUSED[to]}")
    if to not in TARGETS:
        raise UserError(f"--to {to}: unknown target; {did_you_mean(to, TARGETS)}")
    source = Path(run) / "export"
    if not source.is_dir():
        raise UserError(f"{source}: not found; expected the folder of a run that has exported; finish or resume it")
    backbone = timm.read_export(source)
    if to == "timm" and out is None:
        pairs = [(key, key) for key in backbone.model.state_dict()]
        target = _target(to, backbone)
        return _result(source, target.verify(source, backbone), target.snippet(source, backbone), pairs)
    description = timm.read_config(source).get("ssl_vit", {})
    return hand_over(backbone, Path(out or Path(run) / f"export-{to}"), to, description)


def hand_over(backbone: AdaptedBackbone, folder: Path, to: str, description: Mapping[str, Any]) -> ExportResult:
    """Write one of ``TARGETS`` with its model card into a new folder, which appears whole and verified, or not at all.

    backbone: its info has the mean, deviation and size of the images that it was trained with.
    description: of the run that trained it, for the card and for targets that keep it.

    Raises:
        UserError, RunFailed: as :func:`export`.
    """
    target = _target(to, backbone)
    with new_folder(folder) as staging:
        pairs = target.write(backbone, staging, description)
        try:
            verified = target.verify(staging, backbone)
        except RunFailed as error:
            raise RunFailed(f"--to {to}: {error}; nothing was written") from error
        snippet = target.snippet(folder, backbone)
        shapes = {key: tuple(value.shape) for key, value in backbone.model.state_dict().items()}
        keys = [(*pair, shapes[pair[0]]) for pair in pairs]
        card.write(staging, backbone.info, description, says(verified), snippet, keys)
    return _result(folder, verified, snippet, pairs)


def _target(to: str, backbone: AdaptedBackbone) -> ExportTarget:
    """The file that writes for a library; what timm can't build is written for what can."""
    home = "plugin" if to == "timm" and isinstance(backbone, ModuleBackbone) else TARGETS[to]
    return cast(ExportTarget, importlib.import_module(f"ssl_vit.export.{home}"))


def says(verified: Verified) -> str:
    """Say in words how far an export was checked."""
    if verified.max_difference is None:
        return f"names checked for {verified.consumer}, not loaded"
    return f"verified in {verified.consumer}, outputs within {verified.max_difference:.1g} of the run's"


def _result(folder: Path, verified: Verified, snippet: str, pairs: KeyPairs) -> ExportResult:
    return ExportResult(folder, verified.consumer, verified.max_difference, snippet, pairs)
