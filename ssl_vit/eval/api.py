"""Score weights on images: from paths to numbers and how they were made."""

from __future__ import annotations

import importlib
import json as jsons
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssl_vit.checkpoints.reader import weights_file
from ssl_vit.data.dataset_name import Images
from ssl_vit.errors import UserError
from ssl_vit.eval import unfinished as unfinished_of
from ssl_vit.eval.job import Job, Outcome
from ssl_vit.eval.kinds import KINDS, POOLINGS, PRECISIONS, Kind
from ssl_vit.eval.protocol import Protocol
from ssl_vit.eval.readout import LAST
from ssl_vit.files import write_whole
from ssl_vit.spelling import did_you_mean


def evaluate(
    kind: str,
    weights: Path | str,
    *,
    backbone: str | None = None,
    json: Path | str | None = None,
    layers: tuple[int, ...] = LAST,
    pooling: str = "model",
    precision: str = "float32",
    seed: int = 0,
    features: Path | str | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Score weights in one way; ``ssl_vit.eval.kinds.KINDS`` has them all.

    Args:
        kind: "knn", "linear", …
        weights: a run folder, or a file or folder of weights that ``ssl-vit inspect`` knows.
        backbone: timm's name of the architecture, for a weights file that doesn't say it.
        json: a file that the result is also written to; "detection" goes on where it was stopped if it is named again.
        layers: see ``Readout``; (-4, -3, -2, -1) are the last four.
        pooling: "model", "class", "mean" or "class+mean".
        precision: "float32" or "bfloat16", of the backbone's forward pass.
        seed: of whatever the kind draws.
        features: a folder that keeps the features; a run that was stopped goes on there.
        others: the kind's images (most have ``train`` and ``val``, a folder with a sub-folder a class or a labelled
            dataset, as ``pretrain`` takes them) and its options.

    Returns:
        ``{kind: scores, …, "protocol": all that the numbers depend on}``; accuracies are in percent.

    Raises:
        UserError: weights or images that can't be scored; see ``load_backbone`` too.
    """
    if json is not None and not Path(json).parent.is_dir():
        raise UserError(f"--json {json}: the folder {Path(json).parent} does not exist; create it first")
    outcome, protocol = outcome_of(
        kind,
        weights,
        backbone=backbone,
        layers=layers,
        pooling=pooling,
        precision=precision,
        seed=seed,
        features=features,
        unfinished=None if json is None else unfinished_of.folder_of(Path(json)),
        **others,
    )
    result = {kind: dict(outcome.scores), **outcome.more, "protocol": protocol.as_dict()}
    if json is not None:
        text = jsons.dumps(result, indent=2) + "\n"
        write_whole(Path(json), lambda file: file.write(text.encode()))
        unfinished_of.remove(Path(json))
    return result


def outcome_of(
    kind: str,
    weights: Path | str,
    *,
    backbone: str | None = None,
    layers: tuple[int, ...] = LAST,
    pooling: str = "model",
    precision: str = "float32",
    seed: int = 0,
    features: Path | str | None = None,
    unfinished: Path | None = None,
    **others: Any,
) -> tuple[Outcome, Protocol]:
    """As ``evaluate``, with what was right image by image and the protocol as they are."""
    entry = _entry(kind)
    _check_choice("pooling", pooling, POOLINGS)
    _check_choice("precision", precision, PRECISIONS)
    if not entry.reads_features and (layers, pooling, precision, seed, features) != (LAST, "model", "float32", 0, None):
        raise UserError(f"eval {kind}: trains the whole network; leave layers, pooling, precision, seed, features out")
    folders, options = _split(kind, entry, others)
    weights_file(weights)  # a mistake here is answered before any folder is looked through
    job = Job(
        Path(weights),
        folders,
        name=backbone,
        layers=layers,
        pooling=pooling,
        precision=precision,
        seed=seed,
        keep=None if features is None else Path(features),
        unfinished=unfinished,
    )
    outcome = score(entry, job, options)
    return outcome, job.protocol(kind, outcome)


def score(entry: Kind, job: Job, options: dict[str, Any]) -> Outcome:
    """Call a kind's function."""
    module, _, function = entry.home.partition(":")
    call: Callable[..., Outcome] = getattr(importlib.import_module(module), function)
    return call(job, **{name: option.default for name, option in entry.options.items()} | options)


def _entry(kind: str) -> Kind:
    if kind not in KINDS:
        raise UserError(f"eval {kind}: unknown score; {did_you_mean(kind, KINDS)}")
    return KINDS[kind]


def _split(kind: str, entry: Kind, others: dict[str, Any]) -> tuple[dict[str, Images], dict[str, Any]]:
    """The kind's folders and options among what was given."""
    for name in others:
        if name not in entry.folders and name not in entry.options:
            known = [*entry.folders, *entry.options]
            raise UserError(f"eval {kind}: takes no {name}; it takes {', '.join(known)}")
    missing = [name for name in entry.folders if others.get(name) is None]
    if missing:
        raise UserError(f"eval {kind}: needs --{missing[0]} DIR, {entry.folders[missing[0]]}")
    folders = {name: others[name] for name in entry.folders}
    return folders, {name: value for name, value in others.items() if name in entry.options}


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"--{name} {value}: {did_you_mean(value, known)}")
