"""A run's paths are looked at before anything heavy is loaded or written."""

from __future__ import annotations

import os
from pathlib import Path

from ssl_vit.checkpoints.hub import is_hub_id
from ssl_vit.config.schema import RunConfig
from ssl_vit.data.dataset_name import is_dataset, parse, refuse_object
from ssl_vit.data.patterns import expand, is_shards
from ssl_vit.errors import UserError


def check_data(config: RunConfig, *, resume: bool = False) -> None:
    """Raise UserError if the images, the labelled folder or the weights to start from aren't there.

    A run that is resumed has its weights in a checkpoint of its own.
    """
    data, val, weights = config.data.path, config.data.val, config.backbone.weights
    check_images(data, f"images to learn from (DATA), relative to {os.getcwd()}")
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
    elif not os.path.exists(text):
        raise UserError(f"{text}: no such folder; expected {expected}")


def check_new(path: Path) -> None:
    """Raise UserError if something is at ``path`` (but for an empty folder), or if nothing can be made there."""
    found = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if found == path and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path}: exists, and nothing is overwritten; choose another name")
    if not os.path.isdir(found):
        raise UserError(f"{found}: a file is where {path} needs a folder; choose another place")
    if not os.access(found, os.W_OK):
        raise UserError(f"{found}: not writable; choose another place")


def check_out(out: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Raise UserError if a run can't be kept in ``out``; what is there is lost only if a run, by ``overwrite``."""
    if resume and overwrite:
        raise UserError("--resume goes on with a run and --overwrite starts it again; give one of them")
    is_run = (out / "config.yaml").is_file()
    if resume and not is_run:
        raise UserError(f"{out}: no run to resume (no config.yaml); leave out --resume to start one")
    if is_run and not (resume or overwrite):
        raise UserError(f"{out}: a run; add --resume to go on with it or --overwrite to start again, or change --out")
    if not is_run:
        check_new(out)
