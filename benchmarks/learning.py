"""How much is learnt in so many CPU-seconds: k-NN of every method on small networks and small sets, one core each.

    python benchmarks/learning.py DIGITS ICONS --json benchmarks/results/learning.json

DIGITS, ICONS: folders with train/ and val/, one sub-folder a class. A run has the settings that "auto" gives, and as
many epochs as fit its budget, which a few steps of the same run measure first; its schedules end with it. The score is
k-NN top-1 (k = 20) on val/, and the time the process's own CPU clock, from before the images are looked at to the last
step. Where even one epoch does not fit, one is run, and the table shows what it took. Runs that are in the file already
are not made again.
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
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

SETS = ("digits", "icons")
NETWORKS: dict[str, dict[str, Any]] = {  # about a million parameters each; the first is what a run without flags has
    "auto": {},
    "resnet": {"backbone.name": "resnet10t", "backbone.args": {"channels": [32, 64, 96, 160], "stem_width": 16}},
    "convnext": {
        "backbone.name": "convnext_atto",
        "backbone.args": {"depths": [1, 1, 3, 1], "dims": [32, 64, 128, 192], "patch_size": 2},
    },
    "swin": {
        "backbone.name": "swin_tiny_patch4_window7_224",
        "backbone.args": {"embed_dim": 48, "depths": [2, 2, 2], "num_heads": [2, 4, 6], "window_size": 4},
    },
}
SIZE = {"digits": 32, "icons": 64}  # pixels, for the networks that are named
METHODS = ("dino", "byol", "moby", "mocov3", "simclr", "vicreg", "visreg", "sigreg")
BUDGETS = (60, 160, 320, 640)
TRIAL = 12  # steps that measure how long one takes


def flags_of(folder: Path, data: str, network: str, method: str, seed: int) -> dict[str, Any]:
    """The settings of a run, but for its length."""
    flags = {
        "data.path": str(folder / "train"),
        "data.val": str(folder / "val"),
        "data.workers": 0,
        "train.seed": seed,
        **NETWORKS[network],
    }
    if network != "auto":
        flags["backbone.image_size"] = SIZE[data]
    return flags if method == "auto" else flags | {"method.name": method}


def one(flags: dict[str, Any], budget: float, more: list[str]) -> dict[str, Any]:
    """A trial that is thrown away, then the run; in this process."""
    import torch
    import yaml

    from ssl_vit.config import load_config
    from ssl_vit.run.pretrain import pretrain
    from ssl_vit.training.step import take_step

    torch.set_num_threads(1)
    taken: list[float] = []

    class Enough(Exception):  # no error
        """The trial has seen its steps."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        taken.append(time.process_time())
        if len(taken) > TRIAL:
            raise Enough
        return take_step(*args, **kwargs)

    with tempfile.TemporaryDirectory() as scratch:
        before, out = time.process_time(), Path(scratch) / "trial"
        trial = load_config([], more, flags | {"train.epochs": 100, "health.knn_every": 100.0})
        with patch("ssl_vit.training.loop.take_step", timed), suppress(Enough):
            pretrain(trial, out)
        opening, per_step = taken[0] - before, (taken[-1] - taken[2]) / (len(taken) - 3)
        images = sum(1 for each in Path(flags["data.path"]).rglob("*") if each.is_file())
        batch = yaml.safe_load((out / "config.yaml").read_text())["train"]["batch_size"]
        epochs = max(1, round(budget / (per_step * (images // batch))))
        before, out = time.process_time(), Path(scratch) / "run"
        done = pretrain(load_config([], more, flags | {"train.epochs": epochs, "health.knn_every": float(epochs)}), out)
        seconds = time.process_time() - before
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        scores = [row["knn/20"] for row in rows if "knn/20" in row]
    return {
        "before": scores[0],
        "after": scores[-1],
        "epochs": epochs,
        "steps": done.steps,
        "seconds": round(seconds),
        "opening": round(opening),
        "kind": done.verdict.kind if done.verdict else "",
        "verdict": done.verdict.sentence if done.verdict else "",
    }


def table(runs: dict[str, dict[str, Any]]) -> str:
    """A line for each set, network and method: the mean over seeds at each budget, and what it began with."""
    head = "".join(f"{f'{budget} s':>14}" for budget in BUDGETS)
    lines = [f"{'set':8}{'network':10}{'method':9}{'start':>6}{head}"]
    groups: dict[tuple[str, ...], dict[int, list[dict[str, Any]]]] = {}
    for key, found in sorted(runs.items()):
        data, network, method, _, budget = key.split("/")
        groups.setdefault((data, network, method), {}).setdefault(int(budget), []).append(found)
    for (data, network, method), by_budget in groups.items():
        start = statistics.mean(each["before"] for found in by_budget.values() for each in found)
        cells = ""
        for budget in BUDGETS:
            found = by_budget.get(budget, [])
            mean = f"{statistics.mean(each['after'] for each in found):.1f} ({len(found)})" if found else "-"
            cells += f"{mean:>14}"
        lines.append(f"{data:8}{network:10}{method:9}{start:6.1f}{cells}")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, each in a process of its own, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs=len(SETS), type=Path, metavar="FOLDER")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where results are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of all runs")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    folders = dict(zip(SETS, args.folders, strict=True))
    if args.one:
        data, network, method, seed, budget = args.one.split("/")
        found = one(flags_of(folders[data], data, network, method, int(seed)), float(budget), args.set)
        print(json.dumps(found))
        return
    again = [sys.executable, __file__, *map(str, args.folders), "--json", str(args.json)]
    again += [word for each in args.set for word in ("--set", each)]
    for seed in args.seeds:
        for data in args.sets:
            for network in args.networks:
                for method in args.methods:
                    for budget in args.budgets:
                        key = f"{data}/{network}/{method}/{seed}/{budget}"
                        if key in known(args.json):
                            continue
                        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
                        call = subprocess.run(
                            [*again, "--one", key], stdout=subprocess.PIPE, text=True, env=environment
                        )
                        if call.returncode:
                            sys.exit(f"{key}: exit code {call.returncode}")
                        found = json.loads(call.stdout.splitlines()[-1])
                        args.json.write_text(json.dumps(known(args.json) | {key: found}, indent=1) + "\n")
                        print(key, found, flush=True)
    print(table(known(args.json)))


def known(file: Path) -> dict[str, dict[str, Any]]:
    """The runs that a file has."""
    found: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    return found


if __name__ == "__main__":
    main()
