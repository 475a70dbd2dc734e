"""Score weights on images: from paths to numbers and how they were made."""

from __future__ import annotations

import json as jsons
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssl_vit.checkpoints.reader import weights_file
from ssl_vit.data.dataset_name import Images
from ssl_vit.errors import UserError
from ssl_vit.eval import unfinished as unfinished_of
from ssl_vit.eval.job import Job, Outcome
from ssl_vit.eval.kind import FeatureKind, ScoreKind
from ssl_vit.eval.kinds import kind_class
from ssl_vit.eval.protocol import Protocol
from ssl_vit.files import write_whole

log = logging.getLogger("ssl_vit")


def evaluate(
    kind: str,
    weights: Path | str,
    *,
    backbone: str | None = None,
    mean: Sequence[float] | str | None = None,
    std: Sequence[float] | str | None = None,
    json: Path | str | None = None,
    features: Path | str | None = None,
    outside_links: bool = False,
    **others: Any,
) -> dict[str, Any]:
    """Score weights in one way; ``ssl_vit.eval.kinds.list_kinds`` has them all.

    Args:
        kind: "knn", "linear", …
        weights: a run folder, or a file or folder of weights that ``ssl-vit inspect`` knows.
        backbone: timm's name of the architecture, for a weights file that doesn't say it.
        mean, std: of the images that the weights were trained on, in [0, 1], where they don't say it; without, what is
            usual for such a file, which the log says.
        json: a file that the result is also written to; "detection" goes on where it was stopped if it is named again.
        features: a folder that keeps the features; a run that was stopped goes on there.
        outside_links: follow links that lead out of a folder of images.
        others: the kind's images (most have ``train`` and ``val``, a folder with a sub-folder a class or a labelled
            dataset, as ``pretrain`` takes them) and its settings, the fields of its class in ``ssl_vit.eval.kinds``:
            typed, as ``k=(10, 20)``, or the text that the command line takes, as ``k="10,20"``.

    Returns:
        ``{kind: scores, …, "protocol": all that the numbers depend on}``; accuracies are in percent.

    Raises:
        UserError: settings, weights or images that can't be scored; see ``ssl_vit.eval.weights.load_backbone`` too.
    """
    if json is not None and not Path(json).parent.is_dir():
        raise UserError(f"--json {json}: the folder {Path(json).parent} does not exist; create it first")
    kept = None if json is None else unfinished_of.folder_of(Path(json))
    given: dict[str, Any] = {"backbone": backbone, "mean": mean, "std": std, "features": features, **others}
    outcome, protocol = outcome_of(kind, weights, unfinished=kept, outside_links=outside_links, **given)
    scores: dict[str, Any] = _finite({kind: dict(outcome.scores), **outcome.more}, f"eval {kind}")
    result = scores | {"protocol": protocol.as_dict()}
    if json is not None:
        text = jsons.dumps(result, indent=2) + "\n"
        write_whole(Path(json), lambda file: file.write(text.encode()))
        unfinished_of.remove(Path(json))
    return result


def _finite(found: Any, name: str) -> Any:
    """The same values, with None, and a warning, for numbers that are not finite: they are none, and JSON has none."""
    if isinstance(found, Mapping):
        return {key: _finite(value, f"{name}: {key}") for key, value in found.items()}
    if isinstance(found, list | tuple):
        return type(found)(_finite(value, name) for value in found)
    if isinstance(found, float) and not math.isfinite(found):
        log.warning("%s can't be told from these images: %s, written as null", name, found)
        return None
    return found


def outcome_of(
    kind: str,
    weights: Path | str,
    *,
    backbone: str | None = None,
    mean: Sequence[float] | str | None = None,
    std: Sequence[float] | str | None = None,
    features: Path | str | None = None,
    outside_links: bool = False,
    unfinished: Path | None = None,
    **others: Any,
) -> tuple[Outcome, Protocol]:
    """The score comes back with what was right image by image, and its protocol; ``evaluate`` makes a dict of both.

    unfinished: a folder for what a kill should not cost; the caller removes it.
    """
    asked, folders = _asked(kind, others)
    weights_file(weights)  # a mistake here is answered before any folder is looked through
    job = Job(Path(weights), folders, backbone, mean, std, unfinished=unfinished, outside_links=outside_links)
    if isinstance(asked, FeatureKind):
        keep = None if features is None else Path(features)
        layers, pooling, precision = asked.layers, asked.pooling, asked.precision
        job = replace(job, layers=layers, pooling=pooling, precision=precision, seed=asked.seed, keep=keep)
        job = replace(job, max_bad=asked.max_bad)
    elif features is not None:
        raise UserError(f"eval {kind}: features: no features are kept, the whole network is trained; leave it out")
    outcome = asked.score(job)
    return outcome, job.protocol(kind, outcome)


def _asked(kind: str, given: Mapping[str, Any]) -> tuple[ScoreKind, dict[str, Images]]:
    """The kind with its settings, checked, and its folders, among what was given."""
    folders = kind_class(kind).folders
    options = {name: value for name, value in given.items() if name not in folders}
    asked = kind_class(kind).of(options, f"eval {kind}", others=folders)
    missing = [name for name in folders if given.get(name) is None]
    if missing:
        raise UserError(f"eval {kind}: needs --{missing[0]} DIR, {folders[missing[0]]}")
    return asked, {name: given[name] for name in folders}
