"""Score weights on labelled images, or write down their features: from paths to numbers."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from json import dumps
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
import timm
import torch

from ssl_vit import __version__
from ssl_vit.backbones.backbone import Backbone
from ssl_vit.checkpoints.load import restore
from ssl_vit.checkpoints.reader import weights_file
from ssl_vit.data.sources import Source, open_source
from ssl_vit.errors import UserError
from ssl_vit.eval.features import FeatureSet, extract
from ssl_vit.eval.knn import knn
from ssl_vit.eval.linear import linear
from ssl_vit.export.timm import SUMS, check_sums, sha256

_SEED = 0


def load(weights: Path | str, backbone: str | None = None) -> Backbone:
    """The backbone of a run folder, or of a file or folder of weights of any layout that ``ssl-vit inspect`` knows.

    Loading is strict and executes nothing. The info of the backbone has the mean, deviation and size that it was
    trained with, as far as the file says them. backbone: timm's name, where the file doesn't say the architecture.

    Raises:
        UserError: nothing of that kind there, a file without a backbone's name, or weights that don't fit.
    """
    for folder in (Path(weights) / "export", Path(weights)):
        if (folder / SUMS).is_file():
            check_sums(folder)
            return restore(folder, backbone)
    return restore(weights, backbone)


def evaluate(
    kind: str,
    weights: Path | str,
    train: Path | str,
    val: Path | str,
    backbone: str | None = None,
    json: Path | str | None = None,
) -> dict[str, Any]:
    """Score frozen features: "knn" or "linear" trained on ``train`` and tested on ``val``, top-1 in percent.

    Args:
        kind: gives ``{"knn": {"10": …, "20": …, "100": …, "200": …}}`` or ``{"linear": {"top1": …, "lr": …}}``, and
            ``"protocol"``: all that the numbers depend on.
        weights: a run folder, or a file or folder of weights that ``ssl-vit inspect`` knows.
        train: a folder with a sub-folder of images for each class.
        val: the same classes, other images.
        backbone: timm's name of the architecture, for a weights file that doesn't say it.
        json: a file that the result is also written to.

    Raises:
        UserError: weights or images that can't be scored; see ``load`` too.
    """
    if kind not in _SCORES:
        nearest = difflib.get_close_matches(kind, _SCORES, n=1, cutoff=0.0)[0]
        raise UserError(f"eval {kind}: unknown score; did you mean {nearest}? (known: {', '.join(_SCORES)})")
    if json is not None and not Path(json).parent.is_dir():
        raise UserError(f"--json {json}: the folder {Path(json).parent} does not exist; create it first")
    sources = [_labelled(train, "train"), _labelled(val, "val")]
    _same_classes(*sources)
    model = load(weights, backbone)
    sides = [_features(model, source) for source in sources]
    for side, source in zip(sides, sources, strict=True):
        _every_class(side, source)
    result, how = _SCORES[kind](*sides)
    protocol = sides[0].protocol | how
    protocol |= {
        "images": {"train": len(sides[0].files), "val": len(sides[1].files)},
        "left_out": {"train": sides[0].protocol["left_out"], "val": sides[1].protocol["left_out"]},
        "classes": len(sources[0].classes),
        "weights_sha256": sha256(weights_file(weights)),
        "versions": {
            "ssl_vit": __version__,
            "timm": timm.__version__,
            "torch": str(torch.__version__),
            "faiss": faiss.__version__,
        },
    }
    scores = {kind: result, "protocol": protocol}
    if json is not None:
        text = dumps(scores, indent=2) + "\n"
        _write_whole(Path(json), lambda file: file.write(text.encode()))
    return scores


def _score_knn(train: FeatureSet, val: FeatureSet) -> tuple[dict[str, float], dict[str, Any]]:
    temperature = 0.07
    result = knn(train.features, train.labels, val.features, val.labels, temperature=temperature)
    top1 = {str(k): value for k, value in result.top1.items()}
    return top1, {"k": {str(k): used for k, used in result.used.items()}, "temperature": temperature, "seed": None}


def _score_linear(train: FeatureSet, val: FeatureSet) -> tuple[dict[str, float], dict[str, Any]]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = linear(train.features, train.labels, val.features, val.labels, seed=_SEED, device=device)
    how = {
        "classifier": "softmax regression on standardised features, SGD momentum 0.9, cosine, 100 epochs, batch 256",
        "lr_chosen_on": "a tenth of each class of train; then trained again on all of train",
        "held_out": {str(rate): accuracy for rate, accuracy in result.held_out.items()},
        "seed": _SEED,
    }
    return {"top1": result.top1, "lr": result.rate}, how


_SCORES: dict[str, Callable[[FeatureSet, FeatureSet], tuple[dict[str, float], dict[str, Any]]]] = {
    "knn": _score_knn,
    "linear": _score_linear,
}


def embed(weights: Path | str, data: Path | str, out: Path | str, backbone: str | None = None) -> Path:
    """Write the features of every image to an .npz: ``features`` [N, D] float32, ``files`` [N], ``labels`` [N].

    labels are class names, empty where the images are not in class folders. The file appears whole or not at all.

    Raises:
        UserError: ``out`` exists or is no .npz; see ``load`` too.
    """
    out = Path(out)
    if out.suffix != ".npz":
        raise UserError(f"--out {out}: expected a name that ends in .npz")
    if out.exists():
        raise UserError(f"--out {out}: exists already and is never overwritten; choose another name or remove it")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: the folder {out.parent} does not exist; create it first")
    source = open_source(data)
    found = _features(load(weights, backbone), source)
    labels = [source.classes[label] if label >= 0 else "" for label in found.labels]
    files = np.array(found.files)
    _write_whole(out, lambda file: np.savez(file, features=found.features, files=files, labels=np.array(labels)))
    return out


def _features(backbone: Backbone, source: Source) -> FeatureSet:
    height, width = backbone.info.size
    if height != width:
        raise UserError(f"{backbone.info.name}: was built for {height}x{width} pixels; only square images are scored")
    return extract(
        backbone,
        source,
        batch_size=64,
        workers=min(8, os.cpu_count() or 1) if len(source) > 1000 else 0,
        device="cuda" if torch.cuda.is_available() else "cpu",
        image_size=height,
        mean=backbone.info.mean,
        std=backbone.info.std,
    )


def _labelled(path: Path | str, side: str) -> Source:
    source = open_source(path)
    if len(source) < 2:
        raise UserError(f"--{side} {path}: a single image; a score needs several of each class")
    if not source.classes:
        raise UserError(f"--{side} {path}: no labels; expected two or more sub-folders of images, one for each class")
    folders = [entry for entry in os.scandir(path) if entry.is_dir()] if os.path.isdir(path) else []
    empty = sorted({entry.name for entry in folders if not entry.name.startswith(".")} - set(source.classes))
    if empty:
        raise UserError(f"--{side} {path}: empty class {', '.join(empty[:5])}; add images or remove the folder")
    return source


def _same_classes(train: Source, val: Source) -> None:
    only = {
        "--train": sorted(set(train.classes) - set(val.classes)),
        "--val": sorted(set(val.classes) - set(train.classes)),
    }
    for side, names in only.items():
        if names:
            raise UserError(
                f"--train and --val have different classes: {', '.join(names[:5])}{' …' * (len(names) > 5)} only in "
                f"{side}; give both the same sub-folders"
            )


def _every_class(found: FeatureSet, source: Source) -> None:
    counts = np.bincount(found.labels, minlength=len(source.classes))
    empty = [source.classes[i] for i in np.flatnonzero(counts == 0)]
    if empty:
        raise UserError(f"{source.root}: no readable image of {', '.join(empty[:5])}; add images or remove the folder")


def _write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write beside, then rename: no reader ever sees half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
