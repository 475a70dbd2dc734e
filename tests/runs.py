"""Real ``ssl-vit`` processes and what they leave: forked from a server that has imported everything once."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import textwrap
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

from lightning.fabric.utilities.rank_zero import rank_zero_only

from ssl_vit.cli import main
from ssl_vit.process import NOTICES, STOPS

_fork = multiprocessing.get_context("forkserver")
_fork.set_forkserver_preload(["ssl_vit.run.pretrain", "torchmetrics.detection"])

SETTINGS = {  # every one that "auto" would choose and that matters here
    "backbone.name": "vit_tiny_patch16_224",
    "backbone.args": "{patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}",
    "backbone.image_size": 32,
    "backbone.drop_path": 0.2,
    "method.out_dim": 64,
    "method.hidden_dim": 32,
    "method.bottleneck_dim": 16,
    "method.head_norm": "batch",
    "method.centering": "sinkhorn",
    "method.teacher_temp": 0.04,
    "method.warmup_teacher_temp": 0.04,
    "method.momentum": 0.9,
    "method.local_crops": 2,
    "method.local_size": 16,
    "optim.lr": 1e-3,
    "optim.warmup_epochs": 1.0,
    "train.batch_size": 8,
    "train.epochs": 5,
    "train.precision": "32-true",
    "train.checkpoint_every": 5,
    "health.every": 4,
    "health.knn_every": 2.0,
    "health.report": False,  # which costs such small runs more than they do; the tests of it ask for it
    "data.workers": 2,
}
STEPS = 30  # of 48 images, 8 a step


def command(data: Path, out: Path, *more: str, **changes: object) -> list[str]:
    """The arguments of ``ssl-vit pretrain`` for a tiny model; changes: "method__momentum" for method.momentum."""
    settings = SETTINGS | {key.replace("__", "."): value for key, value in changes.items()}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["pretrain", str(data), "--out", str(out), *sets, *more]


class Trap(NamedTuple):
    """A signal that a process gets from itself, so that it comes at the same moment on any machine."""

    number: signal.Signals
    step: int
    saving: bool = False  # between the checkpoint of that step and its checksum, not before the step's metrics
    everyone: bool = False  # as a scheduler does it: each process of the run gets it, the main one last


def start(argv: list[str], log: Path, *traps: Trap, **environment: str) -> ForkServerProcess:
    """A process of its own that runs the command, in the folder of ``log``, to whose end goes what it says."""
    return process_of(_run, argv, str(log), traps, environment)


def process_of(target: Callable[..., None], *args: object) -> ForkServerProcess:
    """A process of its own that calls a function."""
    process = _fork.Process(target=_call, args=(target, *args))
    process.start()
    return process


def _call(target: Callable[..., None], *args: object) -> None:
    multiprocessing.set_start_method("fork", force=True)  # as in a run of its own: else its workers import all anew
    target(*args)


def finish(argv: list[str], log: Path, *traps: Trap, **environment: str) -> int | None:
    """Run the command to its end, or to the test's time-out; the exit code, negative for a signal."""
    return ended(start(argv, log, *traps, **environment))


def program(code: str, argv: list[str], log: Path, *paths: Path, **environment: str) -> ForkServerProcess:
    """A process of its own that runs a Python program, in the folder of ``log``; paths: where it finds modules first.

    Without a start-up: the package has been imported already.
    """
    return process_of(_interpret, code, argv, str(log), [str(path) for path in paths], environment)


def ended(process: ForkServerProcess) -> int | None:
    """Wait for a process's end, or for the test's time-out; its exit code, negative for a signal."""
    try:
        process.join()
    finally:
        process.kill()
    return process.exitcode


def finish_two(argv: list[str], log: Path) -> list[int | None]:
    """Run the command in two processes, started as by torchrun and without a start-up of each; their exit codes."""
    two = [start(argv, log, **environment) for environment in two_ranks()]
    try:
        return [ended(process) for process in two]
    finally:
        for process in two:
            process.kill()


def two_ranks() -> list[dict[str, str]]:
    """What torchrun says to each of two processes, by their environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    common |= {"NODE_RANK": "0", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    return [common | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]


def _run(argv: list[str], log: str, traps: tuple[Trap, ...], environment: dict[str, str]) -> None:
    _begin(log, environment)
    for trap in traps:
        _lay(trap)
    sys.exit(main(argv))


def _interpret(code: str, argv: list[str], log: str, paths: list[str], environment: dict[str, str]) -> None:
    _begin(log, environment)
    sys.path[:0] = paths
    sys.argv[1:] = argv
    importlib.invalidate_caches()
    exec(compile(textwrap.dedent(code), "a program", "exec"), {"__name__": "__main__"})


def _begin(log: str, environment: dict[str, str]) -> None:
    """Make the process one of its own."""
    os.environ |= environment
    rank_zero_only.rank = int(environment.get("RANK", 0))  # which Lightning has read while it was imported
    for number in (*STOPS, *NOTICES):  # a shell may have had the tests ignore some
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.chdir(os.path.dirname(log))
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))  # noqa: SIM115


def _lay(trap: Trap) -> None:
    from ssl_vit.training import checkpoint
    from ssl_vit.training.looks.metrics import Metrics

    write, checksum_of = Metrics.write, checkpoint.checksum_of

    def trapped_write(metrics: Metrics, step: int, row: dict[str, Any]) -> None:
        if step == trap.step:
            others = multiprocessing.active_children() if trap.everyone else []
            for pid in [*(process.pid for process in others), os.getpid()]:
                os.kill(pid or 0, trap.number)
            time.sleep(0.3 * trap.everyone)  # for one that dies of it to have died
        write(metrics, step, row)

    def trapped_checksum_of(path: Path) -> Path:
        if path == checkpoint.checkpoint_path(path.parent, trap.step) and path.exists():
            os.kill(os.getpid(), trap.number)
        return checksum_of(path)

    if trap.saving:
        checkpoint.checksum_of = trapped_checksum_of
    else:
        Metrics.write = trapped_write  # type: ignore[method-assign]  # in the child alone


def wait_for(happened: Callable[[], bool]) -> None:
    """Look until something has happened, or to the test's time-out."""
    while not happened():
        time.sleep(0.002)


def steps_done(out: Path) -> int:
    """Steps of a run, by its metrics."""
    path = out / "metrics.jsonl"
    return path.read_text().count("grad_norm") if path.exists() else 0


def rows(out: Path) -> list[dict[str, float]]:
    """All lines of a run's metrics."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[float]:
    """The loss of every step."""
    return [row["loss"] for row in rows(out) if "grad_norm" in row]


def weights(out: Path) -> bytes:
    """The exported file."""
    return (out / "export" / "model.safetensors").read_bytes()


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder: when it was written and what it holds."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}
