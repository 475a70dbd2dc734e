"""A run's paths are looked at before anything heavy is loaded or written."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from ssl_vit.checkpoints.hub import is_hub_id
from ssl_vit.config.document import read_file
from ssl_vit.config.schema import RunConfig
from ssl_vit.data.dataset_name import is_dataset, parse, refuse_object
from ssl_vit.data.patterns import expand, is_pattern, is_shards, matches
from ssl_vit.data.remote import is_url
from ssl_vit.errors import UserError
from ssl_vit.files import PARTIAL

LOCK = ".lock"  # in the folder of a run: a file that the process which trains holds
_FIRST = {LOCK, "train.log", "checkpoints", "data.json", "environment.json"}  # of a run without its settings


def check_data(config: RunConfig, *, resume: bool = False) -> None:
    """Raise UserError if the images, the labelled folder or the weights to start from aren't there.

    A run that is resumed has its weights in a checkpoint of its own.
    """
    data, val, weights = config.data.path, config.data.val, config.backbone.weights
    for each in (data,) if isinstance(data, str) else data:
        check_images(each, f"images to learn from (DATA), relative to {os.getcwd()}")
    if val is not None:
        check_images(val, "one sub-folder of images a class (--val)")
    if weights is not None and not resume and not is_hub_id(weights) and not os.path.exists(weights):
        raise UserError(f"{weights}: no such file or folder; expected weights to start from (--weights)")


def check_images(text: str, expected: str) -> None:
    """Raise UserError if what names images can't be theirs: no such folder or archive, a name that is spelt wrongly."""
    refuse_object(text)
    if is_dataset(text):
        parse(text)
    elif is_shards(text):
        expand(text)
    elif is_pattern(text):
        matches(text)
    elif is_url(text):
        raise UserError(f"{text}: behind a URL only tar archives are read; name them, as s3://mine/{{000..099}}.tar")
    elif not os.path.exists(text):
        raise UserError(f"{text}: no such folder; expected {expected}")


def check_new(path: Path) -> None:
    """Raise UserError if something is at ``path`` (but for an empty folder), or if nothing can be made there."""
    check_name(path)
    found = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if found == path and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path}: exists, and nothing is overwritten; choose another name")
    if not os.path.isdir(found):
        raise UserError(f"{found}: a file is where {path} needs a folder; choose another place")
    check_writable(found)


def check_name(path: Path) -> None:
    """Raise UserError for a path that no file can have, or that can't be looked at."""
    try:
        os.lstat(path)
        if path.is_dir():
            os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; choose another name") from error


def check_writable(folder: Path) -> None:
    """Raise UserError if nothing can be made in a folder, which is found out by making a file that has no name yet."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: not writable ({error.strerror}); choose another place") from error


def check_out(out: Path, *, resume: bool = False, overwrite: bool = False) -> bool:
    """Raise UserError if a run can't be kept in ``out``; what is there is lost only if a run, by ``overwrite``.

    Return whether there is a run to go on with: one that was stopped before it had kept its settings starts again, and
    a job that Slurm has started again goes on with the run that it began, however it was told to begin.
    """
    check_name(out)
    if is_requeued(out):
        resume, overwrite = True, False
    if resume and overwrite:
        raise UserError("--resume goes on with a run and --overwrite starts it again; give one of them")
    has_settings, begun = (out / "config.yaml").is_file(), _is_begun(out)
    if resume and not (has_settings or begun):
        raise UserError(f"{out}: no run to resume (no config.yaml); leave out --resume to start one")
    if has_settings and not (resume or overwrite):
        raise UserError(f"{out}: a run; add --resume to go on with it or --overwrite to start again, or change --out")
    if resume or begun or (has_settings and _is_run(out)):
        check_writable(out)
    else:
        check_new(out)
    return resume and has_settings


def check_method(out: Path, asked: str | None) -> None:
    """Raise UserError where a run is to go on with another method: of its settings most would be unknown to that."""
    own = next((value for key, value, _ in read_file(out / "config.yaml") if key == ("method", "name")), asked)
    if asked not in (None, own):
        raise UserError(
            f"method.name: was {own}, is {asked}; it can't change on --resume (start a new run; --weights {out} begins "
            "it with this run's weights)"
        )


def is_requeued(out: Path) -> bool:
    """Whether this is a job that Slurm has started again, and the run in ``out`` is the one that it began."""
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0" or not (out / "config.yaml").is_file():
        return False
    try:
        began = json.loads((out / "environment.json").read_text(encoding="utf-8")).get("slurm_job")
    except (OSError, ValueError, AttributeError):
        return False
    return began is not None and began == os.environ.get("SLURM_JOB_ID")


def _is_begun(out: Path) -> bool:
    """Whether a run was stopped in this folder before it had kept its settings, so that there is nothing to lose."""
    names = _names(out)
    return LOCK in names and names <= _FIRST and not any((out / "checkpoints").glob("*"))


def _is_run(out: Path) -> bool:
    """Whether the config.yaml of this folder is a run's, and not that of someone's project."""
    return not {LOCK, "environment.json"}.isdisjoint(names := _names(out)) or names == {"config.yaml"}


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(PARTIAL)} if folder.is_dir() else set()
