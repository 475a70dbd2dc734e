"""The folder of a run: what is in it before the first step."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch

import ssl_vit
from ssl_vit import device, plugins
from ssl_vit.config import ResolvedConfig, dump
from ssl_vit.config.paths import LOCK
from ssl_vit.data.inventory import INVENTORY, write_inventory
from ssl_vit.data.loader import steps_per_epoch
from ssl_vit.data.scan import scan
from ssl_vit.data.sources import Source
from ssl_vit.files import write_atomically
from ssl_vit.report.harmless import harmless
from ssl_vit.report.kept import keep_opening
from ssl_vit.run.changed import DATA, LABELLED, Resumed, kept_data, problem_of, taken
from ssl_vit.run.opening import image_rows, opening_table, say_opening, scored_rows
from ssl_vit.run.plan import Decision, table
from ssl_vit.terminal import LogFile, spoken

log = logging.getLogger("ssl_vit")


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
    resumed: Resumed | None,
    expected: str | None = None,
) -> None:
    """Everything about a run that is known before its first step, into a folder that is there, and said.

    The settings come first: with them, a run that is stopped here can be gone on with.
    sources: images to learn from, and labelled ones to score on; resumed: where the run goes on; expected: how long it
    will take, in words.
    """
    source, val = sources
    (out / "checkpoints").mkdir(exist_ok=True)
    plugins.announce()
    if resumed is not None:
        rows = [*image_rows(source), *scored_rows(val), *([("expected", expected)] if expected is not None else [])]
        log.info("resumed\n%s", opening_table(rows))
        if (out / DATA).exists():
            _go_on(out, sources, resumed)
            return
    else:
        log.info("%s", table(decisions))
        _write(out / "config.yaml", dump(config))
    scanned = scan(source)
    if resumed is None:
        rows = say_opening(config, decisions, source, val, scanned, expected)
        if config.health.report:
            with harmless("what the run said at its start"):
                total = config.train.length(steps_per_epoch(len(source), config.train.batch_size))
                keep_opening(out, rows, decisions, total)
        resumed = Resumed(taken(source), taken(val))
    write_inventory(out / INVENTORY, resumed.images.inventory)
    write_inventory(out / LABELLED, resumed.labelled.inventory)
    _write_data(out, sources, scanned)
    _write(out / "environment.json", json.dumps(_environment(), indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda staged: staged.write_text(text, encoding="utf-8"))


def _go_on(out: Path, sources: tuple[Source, Source | None], resumed: Resumed) -> None:
    """Say which change of the images was allowed, and keep what they are now."""
    problem, kept = problem_of(resumed, sources, out), kept_data(out)
    if problem is not None:
        log.warning("%s; going on with them, as --allow-data-change says", problem)
        was = {"fingerprint": resumed.images.fingerprint} | ({"val": kept["val"]} if kept.get("val") else {})
        earlier = kept.get("changes")
        changed = [*(earlier if isinstance(earlier, list) else []), was | {"change": problem}]
        _write_data(out, sources, scan(sources[0]) | {"changes": changed})
    elif sources[1] is not None and kept.get("val") is None:  # given now, or the run is of an older version
        _write_data(out, sources, kept)
    if sources[1] is None and kept.get("val") is not None:
        log.warning("it was scored on labelled images (--val), and isn't any more")
    for compared, name in ((resumed.images, INVENTORY), (resumed.labelled, LABELLED)):
        copied = compared.changes is not None and compared.changes.copied
        if copied:
            log.info("every image has another time and the same name and size: taken for a copy of the same images")
        if problem is not None or copied or not (out / name).exists():
            write_inventory(out / name, compared.inventory)


def _write_data(out: Path, sources: tuple[Source, Source | None], found: dict[str, Any]) -> None:
    source, val = sources
    found = found | {"fingerprint": source.fingerprint, "val": None if val is None else val.fingerprint}
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
        "lightning": version("lightning"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": [device.name(index) for index in range(device.gpus())],
    } | ({"slurm_job": os.environ["SLURM_JOB_ID"]} if "SLURM_JOB_ID" in os.environ else {})
