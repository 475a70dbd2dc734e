"""Weights are handed to another library: written, loaded there and compared before they appear."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from ssl_vit.adapt.lora import merged
from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.module_adapter import ModuleBackbone
from ssl_vit.checkpoints.hub import is_hub_id
from ssl_vit.checkpoints.load import backbone_of_file
from ssl_vit.checkpoints.reader import weights_file
from ssl_vit.data.dataset_name import Images
from ssl_vit.data.source import Source
from ssl_vit.data.sources import open_source
from ssl_vit.data.values import Pixels
from ssl_vit.errors import RunFailed, UserError
from ssl_vit.export import REFUSED, TARGETS, card, timm
from ssl_vit.export.target import ExportTarget, KeyPairs, Verified
from ssl_vit.files import new_folder, sha256
from ssl_vit.spelling import did_you_mean

OURS = "the run's"


@dataclass(frozen=True)
class ExportResult:
    """The result says where the weights are, who has loaded them, and how to do it oneself."""

    folder: Path
    consumer: str  # name and version of the library that loaded them, or that their names were checked for
    max_difference: float | None  # of its outputs from ours, relative to the largest value; None: not loaded
    snippet: str  # the Python that loads them; it was run
    keys: list[tuple[str, str]] = field(default_factory=list)  # timm's names and what they became
    check: str = ""  # how far it was checked, in words


def export(
    weights: Path | str,
    to: str = "timm",
    out: Path | str | None = None,
    *,
    backbone: str | None = None,
    mean: Sequence[float] | str | None = None,
    std: Sequence[float] | str | None = None,
    int8: Images | None = None,
) -> ExportResult:
    """Write weights for another library, and let it load them; an export that does not verify never appears.

    Args:
        weights: a run folder, which keeps its export in RUN/export, or a file, folder or hub id of weights that
            ``ssl-vit inspect`` knows.
        to: the library that will load the weights, one of ``TARGETS``.
        out: a folder that does not exist yet; without it RUN/export-TARGET, and for timm RUN/export as it is; for
            weights of others a folder beside them, by their name and the target's.
        backbone: timm's name of the architecture, for a weights file that doesn't say it.
        mean, std: of the images that those weights were trained on, in [0, 1], where they don't say it; without, what
            is usual for such a file, which the log says.
        int8: images by which an ONNX graph is also written in 8 bits, as ``pretrain`` takes them; for ``onnx`` alone.

    Raises:
        UserError: an unknown target, a library that is not installed or has no such architecture, no export in the
            run, damaged weights, or ``out`` exists.
        RunFailed: the library cannot load the weights, or gives other outputs.
    """
    if to in REFUSED:
        raise UserError(f"--to {to}: no target: {REFUSED[to]}")
    if to not in TARGETS:
        raise UserError(f"--to {to}: unknown target; {did_you_mean(to, TARGETS)}")
    if int8 is not None and to != "onnx":
        raise UserError(f"--int8: not for --to {to}; set --to onnx, whose graph it makes one of in 8 bits")
    calibrating = open_source(int8) if int8 is not None else None
    folder, asked = Path(weights), {"backbone": backbone, "mean": mean, "std": std}
    if not _is_run(folder):
        loaded = backbone_of_file(weights, backbone, mean, std)
        return hand_over(
            loaded, Path(out or _beside(weights, to)), to, _origin(weights), calibrating, whose="the file's"
        )
    if given := [name for name, value in asked.items() if value is not None]:
        raise UserError(f"--{given[0]}: {weights} is a run, which says it itself; leave it out")
    source = folder / "export"
    if not source.is_dir():
        raise UserError(f"{source}: not found; expected the folder of a run that has exported; finish or resume it")
    made = timm.read_export(source)
    if to == "timm" and out is None:
        pairs = [(key, key) for key in made.model.state_dict()]
        target = _target(to, made)
        return _result(source, target.verify(source, made), target.snippet(source, made), pairs)
    description = timm.read_config(source).get("ssl_vit", {})
    return hand_over(made, Path(out or folder / f"export-{to}"), to, description, calibrating)


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run's, finished or not."""
    return any((folder / name).exists() for name in ("export", "config.yaml", "checkpoints"))


def _beside(weights: Path | str, to: str) -> Path:
    """Where weights of others go: beside them, or for those of a hub into the current folder."""
    if is_hub_id(weights):
        return Path(f"{str(weights).rpartition('/')[2].partition('@')[0]}-{to}")
    path = Path(weights)
    return path.with_name(f"{path.name if path.is_dir() else path.stem}-{to}")


def _origin(weights: Path | str) -> dict[str, Any]:
    """What is known of weights of others, for the card: what their own export says, or the file's name and digest."""
    file = weights_file(weights)
    config = (
        timm.read_config(file.parent) if file.name == timm.WEIGHTS and (file.parent / timm.CONFIG).is_file() else {}
    )
    name = str(weights) if is_hub_id(weights) else file.name
    return config.get("ssl_vit") or {"weights": name, "weights_sha256": sha256(file)}


def hand_over(
    backbone: AdaptedBackbone,
    folder: Path,
    to: str,
    description: Mapping[str, Any],
    calibrating: Source | None = None,
    *,
    whose: str = OURS,
) -> ExportResult:
    """Write one of ``TARGETS`` with its model card into a new folder, which appears whole and verified, or not at all.

    backbone: its info has the mean, deviation and size of the images that it was trained with; what LoRA has trained
    is added to its weights.
    description: of the run that trained it, for the card and for targets that keep it. calibrating: images by which
    an ONNX graph is also written in 8 bits. whose: outputs they are held
    against, in words.

    Raises:
        UserError, RunFailed: as :func:`export`.
    """
    backbone = merged(backbone)
    target = _target(to, backbone)
    with new_folder(folder) as staging:
        pairs = target.write(backbone, staging, description)
        try:
            verified = target.verify(staging, backbone)
        except RunFailed as error:
            raise RunFailed(f"--to {to}: {error}; nothing was written") from error
        said = says(verified, whose)
        if calibrating is not None:
            from ssl_vit.export.int8 import quantise

            seen = replace(calibrating, pixels=Pixels.of(description.get("pixels")))
            said += f"; {quantise(staging, backbone.info, seen)}"
        snippet = target.snippet(folder, backbone)
        shapes = {key: tuple(value.shape) for key, value in backbone.model.state_dict().items()}
        keys = [(*pair, shapes[pair[0]]) for pair in pairs]
        card.write(staging, backbone.info, description, said, snippet, keys)
    return replace(_result(folder, verified, snippet, pairs, whose), check=said)


def _target(to: str, backbone: AdaptedBackbone) -> ExportTarget:
    """The file that writes for a library; what timm can't build is written for what can."""
    home = "plugin" if to == "timm" and isinstance(backbone, ModuleBackbone) else TARGETS[to]
    return cast(ExportTarget, importlib.import_module(f"ssl_vit.export.{home}"))


def says(verified: Verified, whose: str) -> str:
    """Say in words how far an export was checked."""
    if verified.max_difference is None:
        return f"names checked for {verified.consumer}, not loaded"
    return f"verified in {verified.consumer}, outputs within {verified.max_difference:.1g} of {whose}"


def _result(folder: Path, verified: Verified, snippet: str, pairs: KeyPairs, whose: str = OURS) -> ExportResult:
    return ExportResult(folder, verified.consumer, verified.max_difference, snippet, pairs, says(verified, whose))
