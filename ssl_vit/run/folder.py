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
from typing import Any

import lightning as L
import timm
import torch

import ssl_vit
from ssl_vit import plugins
from ssl_vit.config import ResolvedConfig, RunConfig, dump, load_config
from ssl_vit.config.paths import LOCK
from ssl_vit.data.scan import scan
from ssl_vit.data.sources import Source
from ssl_vit.errors import UserError
from ssl_vit.files import write_atomically
from ssl_vit.run.opening import image_rows, opening_table, say_opening
from ssl_vit.run.plan import Decision, table
from ssl_vit.settings import AUTO
from ssl_vit.terminal import LogFile, spoken

log = logging.getLogger("ssl_vit")

# What may differ when a run is resumed: where and how fast it runs, not what it computes.
FREE_ON_RESUME = {("data", "path"), ("data", "val"), ("data", "workers"), ("data", "max_bad"), ("train", "devices")}
FREE_ON_RESUME |= {("train", "nodes"), ("train", "checkpoint_every"), ("health", "every"), ("health", "knn_every")}
FREE_ON_RESUME |= {("train", "checkpoint_activations"), ("data", "kernels"), ("train", "on_notice")}
FREE_ON_RESUME |= {("data", "timeout"), ("train", "timeout")}


def as_before(config: RunConfig) -> RunConfig:
    """A run's own configuration, where that is of before there were ranges and bands."""
    data = config.data
    old: dict[str, Any] = {"range": "each"} if data.range == AUTO else {}
    old |= {"bands": None} if data.bands == AUTO else {}
    return config.model_copy(update={"data": data.model_copy(update=old)})


def check_same(config: ResolvedConfig, source: Source, out: Path) -> None:
    """A resumed run computes what it would have computed: same settings, same images."""
    before = as_before(load_config([out / "config.yaml"])).model_dump()
    now = config.model_dump()
    changed = [
        f"{section}.{key}: was {old}, is {now[section].get(key)}; it can't change on --resume (start a new run)"
        for section, values in before.items()
        for key, old in values.items()
        if (section, key) not in FREE_ON_RESUME and now[section].get(key) != old
    ]
    if changed:
        raise UserError("\n".join(changed))
    if not (out / "data.json").exists():  # stopped before it was written
        return
    was, is_now = json.loads((out / "data.json").read_text())["fingerprint"], source.fingerprint
    if was != is_now:
        then, today = (
            ", ".join(f"{n} {key}" for key, n in found.items() if isinstance(n, int)) for found in (was, is_now)
        )
        change = f"{then}; now {today}" if then != today else f"{then} as before, but others"
        raise UserError(
            f"{source.root}: the images have changed since this run began ({change}); restore them or start anew"
        )


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
    resume: bool,
) -> None:
    """Everything about a run that is known before its first step, into a folder that is there, and said.

    The settings come first: with them, a run that is stopped here can be gone on with.
    sources: images to learn from, and labelled ones to score on.
    """
    source, val = sources
    (out / "checkpoints").mkdir(exist_ok=True)
    plugins.announce()
    if resume:
        log.info("resumed\n%s", opening_table(image_rows(source)))
        if (out / "data.json").exists():
            return
    else:
        log.info("%s", table(decisions))
        _write(out / "config.yaml", dump(config))
    scanned = scan(source)
    if not resume:
        say_opening(config, decisions, source, val, scanned)
    _write(out / "data.json", json.dumps(scanned | {"fingerprint": source.fingerprint}, indent=2) + "\n")
    _write(out / "environment.json", json.dumps(_environment(), indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda staged: staged.write_text(text, encoding="utf-8"))


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
