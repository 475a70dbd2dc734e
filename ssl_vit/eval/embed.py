"""``ssl-vit embed``: the feature vector of every image of a folder, in a file."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from ssl_vit.data.bad import printable
from ssl_vit.data.class_folders import in_class_folders
from ssl_vit.data.dataset_name import Images
from ssl_vit.data.sources import Source
from ssl_vit.errors import UserError
from ssl_vit.eval.embed_patches import write_patches
from ssl_vit.eval.features import FeatureSet
from ssl_vit.eval.job import Job, Outcome
from ssl_vit.eval.kind import ReadoutOptions
from ssl_vit.eval.ranks import ranks
from ssl_vit.eval.readout import LAST
from ssl_vit.files import write_whole

log = logging.getLogger("ssl_vit")
_SHOWN = 5  # names in a message


def embed(
    weights: Path | str,
    data: Images,
    out: Path | str,
    backbone: str | None = None,
    *,
    mean: Sequence[float] | str | None = None,
    std: Sequence[float] | str | None = None,
    outside_links: bool = False,
    layers: tuple[int, ...] = LAST,
    pooling: str = "model",
    precision: str = "float32",
    patches: bool = False,
) -> Path:
    """Write the features [N, D] float32 of every image, with file names, class names and how they were made.

    patches: write those of all patches instead, [N, h, w, D] float16, to a .npy that can be memory-mapped.

    The ending of ``out`` chooses the format: .npz (``features``, ``files``, ``labels``, ``protocol``), .npy (features
    alone; the rest in a .json beside it), .safetensors (the rest in its metadata) or .parquet (a row an image; needs
    pyarrow). Labels are empty where the images are not in class folders, and those of images beside such folders; both
    are said. The file appears whole or not at all; when it was stopped, the same command goes on where it was. Under
    torchrun the processes share the work. mean, std: of the images that the weights were trained on, where they don't
    say it.

    Raises:
        UserError: ``out`` exists or has another ending; see ``load_backbone`` too.
    """
    out = Path(out)
    _check_out(out)
    if patches and out.suffix != ".npy":
        raise UserError(f"--out {out}: patches are written to a .npy, which can be memory-mapped; name one")
    given = {"layers": layers, "pooling": pooling, "precision": precision}
    readout = ReadoutOptions.of(given, "embed").values()
    unfinished = out.with_name(f".{out.name}.unfinished")
    with ranks() as place:
        kept: dict[str, Any] = {"keep": unfinished, "ranks": place, "outside_links": outside_links}
        job = Job(Path(weights), {"data": data}, backbone, mean, std, **kept, **readout)
        source = job.unlabelled("data")
        if patches:
            if place.world > 1:
                raise UserError("embed --patches: one process writes them; start it without torchrun")
            write_patches(job, source, out)
            return out
        found = job.features(source, "data")
    if place.rank == 0:
        labels = _labels(source, found)
        protocol = job.protocol("features", Outcome({}, {})).as_dict()
        _WRITERS[out.suffix](out, found, {"files": found.files, "labels": labels, "protocol": protocol})
        shutil.rmtree(unfinished)
    return out


def _labels(source: Source, found: FeatureSet) -> list[str]:
    """The class of each image, empty where it has none; which ones have none is said."""
    if source.classes:
        return [source.classes[label] for label in found.labels]
    labelled, beside = in_class_folders(source)
    if not labelled.classes:
        log.warning("%s: no labels are written: the images are not in two or more folders of classes", source.root)
        return [""] * len(found.files)
    shown = ", ".join(printable(name) for name in beside[:_SHOWN]) + " …" * (len(beside) > _SHOWN)
    log.warning("%s: %d images beside the class folders get no label: %s", source.root, len(beside), shown)
    return [name.split("/", 1)[0] if "/" in name else "" for name in found.files]


def _check_out(out: Path) -> None:
    """UserError where the file can't be made, before any work."""
    if out.suffix not in _WRITERS:
        raise UserError(f"--out {out}: expected a name that ends in {', '.join(_WRITERS)}")
    for path in (out, out.with_suffix(".json")) if out.suffix == ".npy" else (out,):
        if path.exists():
            raise UserError(f"--out {path}: exists already and is never overwritten; choose another name or remove it")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: the folder {out.parent} does not exist; create it first")
    if out.suffix == ".parquet":
        _pyarrow()


def _npz(out: Path, found: FeatureSet, facts: dict[str, Any]) -> None:
    files, labels, protocol = np.array(facts["files"]), np.array(facts["labels"]), _text(facts["protocol"])
    write_whole(
        out, lambda file: np.savez(file, features=found.features, files=files, labels=labels, protocol=protocol)
    )


def _npy(out: Path, found: FeatureSet, facts: dict[str, Any]) -> None:
    """The names first: features without names would be of no use."""
    text = _text(facts)
    write_whole(out.with_suffix(".json"), lambda file: file.write(text.encode()))
    write_whole(out, lambda file: np.save(file, found.features))


def _safetensors(out: Path, found: FeatureSet, facts: dict[str, Any]) -> None:
    metadata = {key: _text(value) for key, value in facts.items()}
    data = save({"features": np.ascontiguousarray(found.features)}, metadata)
    write_whole(out, lambda file: file.write(data))


def _parquet(out: Path, found: FeatureSet, facts: dict[str, Any]) -> None:
    arrow, parquet = _pyarrow()
    width = found.features.shape[1]
    vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(found.features.reshape(-1)), width)
    names = [_valid(name) for name in facts["files"]]
    table = arrow.table({"file": names, "label": [_valid(label) for label in facts["labels"]], "features": vectors})
    table = table.replace_schema_metadata({"protocol": json.dumps(facts["protocol"])})
    write_whole(out, lambda file: parquet.write_table(table, file))


_WRITERS: dict[str, Callable[[Path, FeatureSet, dict[str, Any]], None]] = {
    ".npz": _npz,
    ".npy": _npy,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
}


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(".parquet needs pyarrow; pip install 'ssl_vit[parquet]', or choose .npz") from None
    return pyarrow, pyarrow.parquet


def _text(value: Any) -> str:
    """ASCII JSON: names that are not UTF-8 stay as they are, escaped."""
    return json.dumps(value)


def _valid(name: str) -> str:
    """A name as valid UTF-8, which parquet asks for."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
