"""What distillation from a frozen teacher brings, and how quick it is.

    python benchmarks/distill.py learning TEACHER SET --json benchmarks/results/distill.json [--figure FILE.png]
    python benchmarks/distill.py speed TEACHER SET

learning: k-NN (k = 20) of small students on SET/val, by CPU-seconds on one core: distilled from TEACHER, and trained
from scratch by the method that a run without flags has and by DINO. The time is the process's own CPU clock, from
before the images are looked at to the last step, the teacher and the filling of its queue included, without the scores.
The steps are those that fit the budget, which a few steps of the same run measure first; schedules end with it. Runs
that are in the file already are not made again.

speed: images a second of a training step, alternating with lightly-train's where that is installed.

TEACHER: any file that `ssl-vit inspect` recognises. SET: a folder with train/ and val/, one sub-folder a class.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

SIZE = 64  # pixels
STUDENTS: dict[str, dict[str, Any]] = {
    "vit": {
        "backbone.name": "vit_tiny_patch16_224",
        "backbone.args": {"patch_size": 8, "depth": 6, "global_pool": "avg", "weight_init": "moco"},
    },
    "resnet18": {"backbone.name": "resnet18"},
}
METHODS = ("distill", "simclr", "dino")
TRIAL, SCORES = 4, 2  # steps that measure how long one takes; scores after the one of the start


def flags_of(args: argparse.Namespace, student: str, method: str, seed: int) -> dict[str, Any]:
    """The settings of a run, but for its length."""
    flags = {
        "data.path": str(args.set / "train"),
        "data.val": str(args.set / "val"),
        "data.workers": 0,
        "train.seed": seed,
        "train.precision": "32-true",
        "train.batch_size": 64,
        "backbone.image_size": SIZE,
        "method.name": method,
        **STUDENTS[student],
    }
    if method == "distill":
        flags |= {"method.teacher": args.teacher, "method.teacher_layer": args.layer}
    return flags


class Watch:
    """CPU-seconds since the start, without what is spent inside ``paused``."""

    def __init__(self) -> None:
        self.start = time.process_time()

    def __call__(self) -> float:
        return time.process_time() - self.start

    @contextmanager
    def paused(self) -> Iterator[None]:
        before = time.process_time()
        yield
        self.start += time.process_time() - before


class Enough(Exception):  # no error
    """The trial has seen its steps."""


def trial(flags: dict[str, Any], folder: Path) -> tuple[float, float]:
    """CPU-seconds before the first step, and of a step."""
    from ssl_vit.config import load_config
    from ssl_vit.run.pretrain import pretrain
    from ssl_vit.training.step import take_step

    taken: list[float] = []

    def timed(*args: Any, **kwargs: Any) -> Any:
        taken.append(time.process_time())
        if len(taken) > TRIAL:
            raise Enough
        return take_step(*args, **kwargs)

    before = time.process_time()
    del flags["data.val"]
    with patch("ssl_vit.training.loop.take_step", timed), suppress(Enough):
        pretrain(load_config([], [], flags | {"train.steps": 30}), folder / "trial")
    return taken[0] - before, (taken[-1] - taken[1]) / (len(taken) - 2)


def one(flags: dict[str, Any], budget: float) -> dict[str, Any]:
    """A trial that is thrown away, then the run; in this process."""
    import torch

    from ssl_vit.config import load_config
    from ssl_vit.eval.online import OnlineScore
    from ssl_vit.run.pretrain import pretrain
    from ssl_vit.training.looks.metrics import Metrics

    torch.set_num_threads(1)
    curve: list[tuple[float, float]] = []
    score, write = OnlineScore.__call__, Metrics.write
    with tempfile.TemporaryDirectory() as scratch:
        opening, step = trial(dict(flags), Path(scratch))
        steps = max(8, round((budget - opening) / step))
        images = sum(1 for each in Path(flags["data.path"]).rglob("*") if each.is_file())
        per_epoch = images // flags["train.batch_size"]
        watch = Watch()

        def scored(*args: Any, **kwargs: Any) -> Any:
            with watch.paused():
                return score(*args, **kwargs)

        def kept(metrics: Any, at: int, row: dict[str, Any]) -> None:
            if "knn/20" in row:
                curve.append((watch(), row["knn/20"]))
            write(metrics, at, row)

        more = {"train.steps": steps, "health.knn_every": steps / SCORES / per_epoch}
        with (
            patch.object(OnlineScore, "__call__", scored),
            patch.object(Metrics, "write", kept),
            patch("ssl_vit.run.length._SHORT", 10**9),
        ):
            done = pretrain(load_config([], [], flags | more), Path(scratch) / "run")
    verdict = done.verdict.kind if done.verdict else ""
    return {"curve": curve, "steps": steps, "opening": round(opening, 1), "step": round(step, 3), "verdict": verdict}


def table(runs: dict[str, dict[str, Any]]) -> str:
    """A line for each student and method: the score at the start and at the end, of each seed."""
    lines = [f"{'student':10}{'method':10}{'seed':>5}{'start':>7}{'end':>7}{'CPU-s':>7}{'steps':>7}  verdict"]
    for key, found in sorted(runs.items()):
        student, method, seed, _ = key.split("/")
        (_, before), (seconds, after) = found["curve"][0], found["curve"][-1]
        lines.append(
            f"{student:10}{method:10}{seed:>5}{before:7.1f}{after:7.1f}{seconds:7.0f}{found['steps']:7}  "
            f"{found['verdict']}"
        )
    return "\n".join(lines)


def draw(runs: dict[str, dict[str, Any]], file: Path) -> None:
    """The curves: a panel a student, a colour a method, a line a seed."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from ssl_vit.drawing import ACCENT, INK, SECOND, STYLE

    colours = dict(zip(METHODS, (ACCENT, INK, SECOND), strict=True))
    students = sorted({key.split("/")[0] for key in runs})
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.5 * len(students), 3.5), layout="constrained")
        for axes, student in zip(figure.subplots(1, len(students), squeeze=False)[0], students, strict=True):
            for key, found in sorted(runs.items()):
                its, method, seed, _ = key.split("/")
                if its == student:
                    axes.plot(*zip(*found["curve"], strict=True), color=colours[method], label=f"{method}, seed {seed}")
            axes.set(title=student, xlabel="CPU-seconds, teacher included", ylabel="k-NN top-1, %")
            axes.legend(frameon=False, fontsize="small")
        figure.savefig(file, dpi=150)


def known(file: Path) -> dict[str, dict[str, Any]]:
    """The runs that a file has."""
    found: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    return found


def learning(args: argparse.Namespace) -> None:
    """Run what is missing, each in a process of its own, then print the table."""
    for seed in args.seeds:
        for student in args.students:
            for method in args.methods:
                key = f"{student}/{method}/{seed}/{args.budget:g}"
                if key in known(args.json):
                    continue
                command = [sys.executable, __file__, *sys.argv[1:], "--one", key]
                environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
                call = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
                if call.returncode:
                    sys.exit(f"{key}: exit code {call.returncode}")
                found = json.loads(call.stdout.splitlines()[-1])
                args.json.write_text(json.dumps(known(args.json) | {key: found}, indent=1) + "\n")
                print(key, found, flush=True)
    print(table(known(args.json)))
    if args.figure:
        draw(known(args.json), args.figure)


def speed(args: argparse.Namespace) -> None:
    """Seconds of a step of ours, and of lightly-train's where it is there."""
    import torch

    torch.set_num_threads(1)
    for student in args.students:
        with tempfile.TemporaryDirectory() as scratch:
            flags = flags_of(args, student, "distill", 0)
            _, step = trial(flags, Path(scratch))
            print(f"{student}: {flags['train.batch_size'] / step:.1f} images a CPU-second", flush=True)
    if find_spec("lightly_train") is None:
        print("lightly-train is not installed: nothing is compared (pip install lightly-train==0.18 beside ssl_vit)")
        return
    print("lightly-train:", statistics.median(peer(args) for _ in range(3)), "images a CPU-second")


def peer(args: argparse.Namespace) -> float:
    """Images a CPU-second of lightly-train's distillation of the same network into a ResNet-18."""
    import lightly_train  # type: ignore[import-not-found]  # no dependency of ours

    images = sum(1 for each in (args.set / "train").rglob("*") if each.is_file())
    with tempfile.TemporaryDirectory() as scratch:
        before = time.process_time()
        lightly_train.pretrain(
            out=scratch,
            data=str(args.set / "train"),
            model="torchvision/resnet18",
            method="distillation",
            method_args={"teacher": "dinov2/vits14", "teacher_weights": args.teacher},
            epochs=2,
            batch_size=64,
            transform_args={"image_size": (SIZE, SIZE)},
            num_workers=0,
            accelerator="cpu",
            overwrite=True,
        )
        return 2 * images / (time.process_time() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["learning", "speed"])
    parser.add_argument("teacher", metavar="TEACHER")
    parser.add_argument("set", type=Path, metavar="SET")
    parser.add_argument("--layer", type=int, default=-1, help="the teacher's layer that is learnt")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where results are kept")
    parser.add_argument("--figure", type=Path, metavar="FILE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--students", nargs="+", default=list(STUDENTS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--budget", type=float, default=300, help="CPU-seconds of a run")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        student, method, seed, budget = args.one.split("/")
        print(json.dumps(one(flags_of(args, student, method, int(seed)), float(budget))))
    else:
        (learning if args.what == "learning" else speed)(args)


if __name__ == "__main__":
    main()
