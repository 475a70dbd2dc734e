"""The folder of a run: what is in it before the first step, and what must be the same when a run is resumed."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import timm
import torch

import ssl_vit
from ssl_vit import plugins
from ssl_vit.config import ResolvedConfig, RunConfig, dump, load_config
from ssl_vit.config.paths import LOCK
from ssl_vit.data.inventory import Changes, Inventory, changes, read_inventory, take_inventory, write_inventory
from ssl_vit.data.scan import scan
from ssl_vit.data.sources import Source
from ssl_vit.errors import UserError
from ssl_vit.files import write_atomically
from ssl_vit.run.opening import image_rows, opening_table, say_opening
from ssl_vit.run.plan import Decision, table
from ssl_vit.settings import AUTO
from ssl_vit.terminal import LogFile, spoken
from ssl_vit.training.ranks import rank

log = logging.getLogger("ssl_vit")

DATA, INVENTORY = "data.json", "images.npz"  # what the images are: in sum, and one by one

# What may differ when a run is resumed: where and how fast it runs, not what it computes.
FREE_ON_RESUME = {("data", "path"), ("data", "val"), ("data", "workers"), ("data", "max_bad"), ("train", "devices")}
FREE_ON_RESUME |= {("train", "nodes"), ("train", "checkpoint_every"), ("health", "every"), ("health", "knn_every")}
FREE_ON_RESUME |= {("train", "checkpoint_activations"), ("data", "kernels"), ("train", "on_notice")}
FREE_ON_RESUME |= {("data", "timeout"), ("train", "timeout"), ("data", "outside_links")}
FREE_ON_RESUME |= {("train", "compile")}  # a machine to resume on may have no compiler
FREE_ON_RESUME |= {("optim", "lr_batch")}  # of which the rates were made, that are compared themselves


def as_before(config: RunConfig) -> RunConfig:
    """A run's own configuration, where that is of before there were ranges and bands."""
    data = config.data
    old: dict[str, Any] = {"range": "each"} if data.range == AUTO else {}
    old |= {"bands": None} if data.bands == AUTO else {}
    return config.model_copy(update={"data": data.model_copy(update=old)})


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


def check_same(config: ResolvedConfig, source: Source, out: Path, allow_data_change: bool = False) -> Compared | None:
    """A resumed run computes what it would have computed: same settings, same images, unless a change is allowed.

    Settings are compared in every process, images in the first; the others get None.
    """
    check_settings(config, out)
    if rank() != 0:
        return None
    compared = _compared(source, out)
    if not allow_data_change and (problem := _problem(compared, source, out)):
        raise UserError(f"{problem}; {_GO_ON}")
    return compared


_GO_ON = "restore them, start anew, or go on with what is there: --allow-data-change (in Python allow_data_change=True)"


def _compared(source: Source, out: Path) -> Compared:
    """The images as they are, beside what the run's folder says of them."""
    try:
        was = json.loads((out / DATA).read_bytes())["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        was = None
    found = take_inventory(source)
    before = read_inventory(out / INVENTORY)
    if before is None or found is None:
        return Compared(found, None, was)
    if was == source.fingerprint:  # the same names, wherever the images have been moved
        before = before._replace(names=found.names)
    return Compared(found, changes(before, found), was)


def _problem(compared: Compared, source: Source, out: Path) -> str | None:
    """What is wrong with a resumed run's images, in a line; None where they are the same."""
    was, is_now, named = compared.fingerprint, source.fingerprint, compared.changes
    if was is None and not (out / DATA).exists():  # stopped before it was written
        return None
    if was is None:
        return f"{out / DATA}: damaged, so that the images which the run began with aren't known"
    if was == is_now and not named:
        return None
    then, today = (", ".join(f"{n} {key}" for key, n in found.items() if isinstance(n, int)) for found in (was, is_now))
    said = f"{then}; now {today}" if then != today else f"{then} as before, but others"
    return f"{source.root}: the images have changed since this run began ({said}{f'; {named}' if named else ''})"


def clear(out: Path) -> None:
    """Delete a run, but for the lock on its folder.

    Its settings go last and what says that it is complete goes first: whenever this is killed, what is left is a run
    that can be gone on with or overwritten.
    """
    paths = {path.name: path for path in out.iterdir() if path.name != LOCK}
    last = [paths.pop(name) for name in ("data.json", "environment.json", "config.yaml") if name in paths]
    first = [paths.pop(name) for name in ("COMPLETE", "checkpoints") if name in paths]
    for path in [*first, *paths.values(), *last]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def identity(out: Path) -> tuple[int, int] | None:
    """Which run a folder holds, to see whether it is another one by now; None where there is none."""
    try:
        kept = (out / "config.yaml").stat()
    except FileNotFoundError:
        return None
    return kept.st_ino, kept.st_mtime_ns


def open_folder(
    out: Path,
    config: ResolvedConfig,
    decisions: list[Decision],
    sources: tuple[Source, Source | None],
    compared: Compared | None,
    expected: str | None = None,
) -> None:
    """Everything about a run that is known before its first step, into a folder that is there, and said.

    The settings come first: with them, a run that is stopped here can be gone on with.
    sources: images to learn from, and labelled ones to score on; compared: where the run is resumed.
    expected: how long it will take, in words.
    """
    source, val = sources
    (out / "checkpoints").mkdir(exist_ok=True)
    plugins.announce()
    if compared is not None:
        rows = [*image_rows(source), *([("expected", expected)] if expected is not None else [])]
        log.info("resumed\n%s", opening_table(rows))
        if (out / DATA).exists():
            _go_on(out, source, compared)
            return
    else:
        log.info("%s", table(decisions))
        _write(out / "config.yaml", dump(config))
    scanned = scan(source)
    if compared is None:
        say_opening(config, decisions, source, val, scanned, expected)
    write_inventory(out / INVENTORY, take_inventory(source) if compared is None else compared.inventory)
    _write_data(out, scanned | {"fingerprint": source.fingerprint})
    _write(out / "environment.json", json.dumps(_environment(), indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda staged: staged.write_text(text, encoding="utf-8"))


def _go_on(out: Path, source: Source, compared: Compared) -> None:
    """Say which change of the images was allowed, and keep what they are now."""
    problem = _problem(compared, source, out)
    if problem is not None:
        log.warning("%s; going on with them, as --allow-data-change says", problem)
        try:
            kept = json.loads((out / DATA).read_bytes())
            earlier = [*kept.get("changes", []), {"fingerprint": compared.fingerprint, "change": problem}]
        except (OSError, ValueError, AttributeError):
            earlier = [{"fingerprint": None, "change": problem}]
        _write_data(out, scan(source) | {"fingerprint": source.fingerprint, "changes": earlier})
    copied = compared.changes is not None and compared.changes.copied
    if copied:
        log.info("every image has another time and the same name and size: taken for a copy of the same images")
    if problem is not None or copied or not (out / INVENTORY).exists():
        write_inventory(out / INVENTORY, compared.inventory)


def _write_data(out: Path, found: dict[str, Any]) -> None:
    _write(out / DATA, json.dumps(found, indent=2) + "\n")


@contextmanager
def logged(path: Path | None) -> Iterator[None]:
    """Inside, what the package logs goes to a file, and to the terminal without dates; None: errors alone are heard.

    What the caller's program does with the logger "ssl_vit" goes on as it was, and nothing is left of ours afterwards.
    """
    level, handlers = log.level, list[logging.Handler]()
    if path is not None:
        file, terminal = LogFile(path, encoding="utf-8"), spoken()
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handlers = [file, terminal]
    log.setLevel(logging.ERROR if path is None else logging.INFO)
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield
    finally:
        log.setLevel(level)
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


def _environment() -> dict[str, Any]:
    return {
        "ssl_vit": ssl_vit.__version__,
        "torch": str(torch.__version__),
        "timm": timm.__version__,
        "lightning": L.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    } | ({"slurm_job": os.environ["SLURM_JOB_ID"]} if "SLURM_JOB_ID" in os.environ else {})
