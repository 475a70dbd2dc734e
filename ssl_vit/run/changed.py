"""What must be the same when a run is resumed, settings and images, and what has changed since it began."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssl_vit.config import ResolvedConfig, RunConfig, load_config
from ssl_vit.data.dataset_name import is_object
from ssl_vit.data.inventory import INVENTORY, Changes, Inventory, changes, read_inventory, take_inventory
from ssl_vit.data.sources import Source, open_source
from ssl_vit.errors import UserError
from ssl_vit.methods.continuing import AT_RANDOM
from ssl_vit.settings import AUTO
from ssl_vit.training.ranks import rank

DATA = "data.json"  # what the images are in sum; one by one they are in INVENTORY, the labelled ones in LABELLED
LABELLED = "val.npz"

# What may differ when a run is resumed: where and how fast it runs, not what it computes.
FREE_ON_RESUME = {("data", "path"), ("data", "val"), ("data", "workers"), ("data", "max_bad"), ("train", "devices")}
FREE_ON_RESUME |= {("train", "nodes"), ("train", "checkpoint_every"), ("health", "every"), ("health", "knn_every")}
FREE_ON_RESUME |= {("health", "patience")}
FREE_ON_RESUME |= {("train", "checkpoint_activations"), ("data", "kernels"), ("train", "on_notice")}
FREE_ON_RESUME |= {("data", "timeout"), ("train", "timeout"), ("data", "outside_links")}
FREE_ON_RESUME |= {("health", "report"), ("health", "tracker")}
FREE_ON_RESUME |= {("train", "compile")}  # a machine to resume on may have no compiler
FREE_ON_RESUME |= {("optim", "lr_batch")}  # of which the rates were made, that are compared themselves


def as_before(config: RunConfig) -> RunConfig:
    """A run's own configuration, where that is of before there were ranges, bands, schedules that cool down and recipes
    for trained weights."""
    data = config.data
    old: dict[str, Any] = {"range": "each"} if data.range == AUTO else {}
    old |= {"bands": None} if data.bands == AUTO else {}
    then = {"cooldown_epochs": 0.0} | {key.removeprefix("optim."): value for key, value in AT_RANDOM.items()}
    missing = {key: value for key, value in then.items() if getattr(config.optim, key) == AUTO}
    optim = config.optim.model_copy(update=missing)
    return config.model_copy(update={"data": data.model_copy(update=old), "optim": optim})


class Compared(NamedTuple):
    """What a resumed run's images are, and how they differ from those that it began with."""

    inventory: Inventory | None
    changes: Changes | None  # None where there is nothing to compare with
    fingerprint: dict[str, Any] | None  # of those that it began with; None where it isn't known


def check_settings(config: RunConfig, out: Path, *, done: bool = False) -> None:
    """UserError where a setting that decides what a run computes isn't what it was; done: the run is complete."""
    before = as_before(load_config([out / "config.yaml"])).model_dump()
    now = config.model_dump()
    instead = "start a new run" + (f"; --weights {out} begins it with this run's weights" if done else "")
    changed = [
        f"{section}.{key}: was {old}, is {now[section].get(key)}; it can't change on --resume ({instead})"
        for section, values in before.items()
        for key, old in values.items()
        if (section, key) not in FREE_ON_RESUME and now[section].get(key) not in (old, "auto")
    ]
    if changed:
        raise UserError("\n".join(changed))


class Resumed(NamedTuple):
    """What has become of a resumed run's images since it began, and of the labelled ones that score it."""

    images: Compared
    labelled: Compared


def check_done(config: RunConfig, out: Path) -> None:
    """UserError where a complete run is asked for something else than it has done: other settings, or other images."""
    check_settings(config, out, done=True)
    before, kept = load_config([out / "config.yaml"]).data, kept_data(out)
    for key, flag, was, now in (
        ("fingerprint", "DATA", before.path, config.data.path),
        ("val", "--val", before.val, config.data.val),
    ):
        if now is None or _places(now) == _places(was) or any(map(is_object, _texts(now))):
            continue
        if was is not None and key not in kept:  # an older version's run, or a damaged one
            continue
        if kept.get(key) != open_source(now, config.data.outside_links).fingerprint:
            what = "it learns nothing from others" if key == "fingerprint" else "it is scored no more; see ssl-vit eval"
            raise UserError(
                f"{flag} {' '.join(_texts(now))}: not the images of {out}, which is complete: {what} (start a new run; "
                f"--weights {out} begins it with this run's weights)"
            )


def _texts(images: str | Sequence[str]) -> list[str]:
    return [images] if isinstance(images, str) else list(images)


def _places(images: str | Sequence[str] | None) -> list[str]:
    """Where images are, however it is written."""
    return [] if images is None else [os.path.realpath(text) for text in _texts(images)]


def check_same(
    config: ResolvedConfig, sources: tuple[Source, Source | None], out: Path, allow_data_change: bool = False
) -> Resumed | None:
    """A resumed run computes what it would have computed: same settings, same images, unless a change is allowed.

    sources: images to learn from, and labelled ones to score on. Settings are compared in every process, images in the
    first; the others get None.
    """
    check_settings(config, out)
    if rank() != 0:
        return None
    kept = kept_data(out)
    resumed = Resumed(
        _compared(sources[0], kept.get("fingerprint"), out / INVENTORY),
        _compared(sources[1], kept.get("val"), out / LABELLED),
    )
    if not allow_data_change and (problem := problem_of(resumed, sources, out)):
        raise UserError(f"{problem}; {_GO_ON}")
    return resumed


_GO_ON = "restore them, start anew, or go on with what is there: --allow-data-change (in Python allow_data_change=True)"


def kept_data(out: Path) -> dict[str, Any]:
    """What data.json says; nothing where it is missing or damaged."""
    try:
        kept = json.loads((out / DATA).read_bytes())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) and isinstance(kept.get("fingerprint"), dict) else {}


def taken(source: Source | None) -> Compared:
    """Images as they are, of a run that begins."""
    return Compared(None if source is None else take_inventory(source), None, None)


def _compared(source: Source | None, was: Any, kept: Path) -> Compared:
    """Images as they are, beside what the run's folder says of them."""
    was = was if isinstance(was, dict) else None
    if source is None:
        return Compared(None, None, was)
    found, before = take_inventory(source), read_inventory(kept)
    if before is None or found is None:
        return Compared(found, None, was)
    if was == source.fingerprint:  # the same names, wherever the images have been moved
        before = before._replace(names=found.names)
    return Compared(found, changes(before, found), was)


def problem_of(resumed: Resumed, sources: tuple[Source, Source | None], out: Path) -> str | None:
    """What is wrong with a resumed run's images, in a line; None where they are the same."""
    if resumed.images.fingerprint is None:
        missing = not (out / DATA).exists()
        if missing and not any((out / "checkpoints").glob("*.ckpt")):  # stopped before it was written
            return None
        how = "missing" if missing else "damaged"
        return f"{out / DATA}: {how}, so that the images which the run began with aren't known"
    problems = [_difference(resumed.images, sources[0], "the images have")]
    if sources[1] is not None and resumed.labelled.fingerprint is not None:  # else an older version's, or given now
        which = "the labelled images (--val), on which it is scored, have"
        problems.append(_difference(resumed.labelled, sources[1], which))
    return "; ".join(filter(None, problems)) or None


def _difference(compared: Compared, source: Source, which: str) -> str | None:
    was, is_now, named = compared.fingerprint or {}, source.fingerprint, compared.changes
    if was == is_now and not named:
        return None
    then, today = (", ".join(f"{n} {key}" for key, n in found.items() if isinstance(n, int)) for found in (was, is_now))
    said = f"{then}; now {today}" if then != today else f"{then} as before, but others"
    return f"{source.root}: {which} changed since this run began ({said}{f'; {named}' if named else ''})"
