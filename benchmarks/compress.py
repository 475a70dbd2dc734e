"""What pruning and a supernet cost and save on this machine.

    python benchmarks/compress.py prune [--keep 0.5] [--backbone vit_small_patch16_224]
    python benchmarks/compress.py step [--space tiny]
    python benchmarks/compress.py learning SET --json FILE [--figure FILE.png] [--seeds 3]

prune: a plain ViT with random gates, cut at one threshold, against itself before: milliseconds an image in batches of
32, taking turns. Random gates are near the worst case: each layer loses about as much as the others, and no head goes.

step: a training step of a supernet, members drawn as in a run, against the step of its largest member by itself, taking
turns on the same views.

learning: k-NN (k = 20) on SET/val of a small ViT trained by SimCLR, of what is left of it at keep 0.7 and 0.5 before
and after recovery, and of the same network trained at a sparsity of 0.5 for as many steps. SET: train/ and val/, one
sub-folder a class. What FILE has already is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from ssl_vit.backbones import create_backbone
from ssl_vit.backbones.families.pruned_vit import PACE, Gate
from ssl_vit.backbones.spaces import SPACES, space_of
from ssl_vit.compress.prune import prune as run_prune
from ssl_vit.compress.shrink import left_of_gates, prunable, shrunk
from ssl_vit.config import ResolvedConfig, load_config
from ssl_vit.data.sources import open_source
from ssl_vit.eval.api import evaluate
from ssl_vit.eval.budget import Point, gmacs, timed
from ssl_vit.run.facts import Facts
from ssl_vit.run.plan import resolve_config
from ssl_vit.run.prepare import build_method
from ssl_vit.run.pretrain import pretrain
from ssl_vit.training.fabric import new_fabric
from ssl_vit.training.step import Learner, ReadyViews, take_step

BATCH, ROUNDS = 32, 12


def prune(args: argparse.Namespace) -> None:
    """Print what a share kept costs, over what all costs."""
    torch.manual_seed(0)
    whole = create_backbone(args.backbone).eval()
    gated = prunable(whole, 1e-4)
    for gate in (module for module in gated.modules() if isinstance(module, Gate)):
        torch.nn.init.uniform_(gate.tenths, 0, 1 / PACE)
    small = shrunk(gated, left_of_gates(gated.model, args.keep)).eval()
    images = torch.randn(BATCH, 3, *whole.info.size)
    before, after = timed([Point({}, whole), Point({}, small)], images)
    macs = [gmacs(network, images[:1]) for network in (whole, small)]
    print(
        f"{args.backbone} at keep {args.keep:g}: {small.info.parameters / whole.info.parameters:.1%} of the parameters,"
        f" {macs[1] / macs[0]:.1%} of the multiply-adds; {before['32']:.2f} -> {after['32']:.2f} ms an image in "
        f"batches of 32: {before['32'] / after['32']:.2f} times as fast (batches of 1: {before['1'] / after['1']:.2f})"
    )


def step(args: argparse.Namespace) -> None:
    """Print the time of a supernet's step over that of its largest member."""
    learners = [_learner(args, space) for space in (args.space, None)]
    views = [torch.randn(view.count * args.batch, 3, view.size, view.size) for view in learners[0].method.views().views]
    spent: list[list[float]] = [[], []]
    for number in range(ROUNDS):
        for learner, found in zip(learners, spent, strict=True):
            start = time.perf_counter()
            take_step(learner, ReadyViews(views), number)
            found.append(time.perf_counter() - start)
    supernet, largest = (statistics.mean(each[1:]) for each in spent)
    print(
        f"{args.space}, {args.method}, {args.batch} images of {args.size} pixels: {supernet:.3f} s a step of the "
        f"supernet, {largest:.3f} s of its largest member: {supernet / largest:.2f} (mean of {ROUNDS - 1})"
    )


SETTINGS: dict[str, Any] = {
    "method.name": "simclr",
    "backbone.name": "vit_tiny_patch16_224",
    "backbone.args": {"patch_size": 8, "depth": 6, "global_pool": "avg", "weight_init": "moco"},
    "backbone.image_size": 64,
    "train.batch_size": 64,
    "train.precision": "32-true",
    "data.workers": 0,
}
STEPS, RECOVERY = 300, 96  # of the run, and of what recovers; gates have half as many
KEEP = (0.7, 0.5)


def learning(args: argparse.Namespace) -> None:
    """Write k-NN of each seed and stage, print the table, draw it."""
    found: dict[str, dict[str, float]] = json.loads(args.json.read_text()) if args.json.exists() else {}
    for seed in range(args.seeds):
        if str(seed) not in found:
            with tempfile.TemporaryDirectory() as folder:
                found[str(seed)] = _stages(args.set, seed, Path(folder))
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    stages = list(next(iter(found.values())))
    print(f"{'k-NN, % ':24}" + "".join(f"  seed {seed}" for seed in found))
    for stage in stages:
        print(f"{stage:24}" + "".join(f"  {each[stage]:6.2f}" for each in found.values()))
    if args.figure is not None:
        draw(found, args.figure)


def _stages(images: Path, seed: int, folder: Path) -> dict[str, float]:
    """K-NN by stage, and parameters in millions as "parameters, STAGE"."""
    config = {**SETTINGS, "train.seed": seed, "train.steps": STEPS}
    pretrain(str(images / "train"), folder / "run", config)
    found = {"trained": _knn(folder / "run", images)}
    per_epoch = len(open_source(str(images / "train"))) // SETTINGS["train.batch_size"]
    epochs = max(1, round(RECOVERY / per_epoch))
    sets = [f"{key}={SETTINGS[key]}" for key in ("train.precision", "train.batch_size", "data.workers")]
    sets.append(f"train.seed={seed}")
    for keep in KEEP:
        out = folder / f"pruned-{keep}"
        done = run_prune(folder / "run", str(images / "train"), out, keep, epochs=epochs, sets=sets)
        found[f"kept {keep}, cut"] = _knn(out / "pruned", images)
        found[f"kept {keep}, recovered"] = _knn(out, images)
        found[f"kept {keep}, parameters"] = done.costs[1].parameters / done.costs[0].parameters
    pretrain(str(images / "train"), folder / "sparse", config | {"train.sparsity": 0.5})
    found["sparse 0.5"] = _knn(folder / "sparse", images)
    return found


def _knn(weights: Path, images: Path) -> float:
    scores = evaluate("knn", weights, train=str(images / "train"), val=str(images / "val"))["knn"]
    return float(scores["20"])


def draw(found: dict[str, dict[str, float]], path: Path) -> None:
    """A line a seed, over the stages of each share."""
    figure = Figure((6, 3.2), layout="constrained")
    axes = figure.subplots()
    for number, values in enumerate(found.values()):
        named = {True: "", False: "_"}[number == 0]
        for colour, keep in enumerate(KEEP):
            line = [values["trained"], values[f"kept {keep}, cut"], values[f"kept {keep}, recovered"]]
            axes.plot(range(3), line, marker="o", color=f"C{colour}", label=f"{named}keep {keep}")
        axes.plot([2], [values["sparse 0.5"]], "x", color="C3", label=f"{named}sparse 0.5, from scratch")
    axes.set_xticks(range(3), ["trained", "cut off", "recovered"])
    axes.set_ylabel("k-NN, %")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def _learner(args: argparse.Namespace, space: str | None) -> Learner:
    chosen = space_of(args.space)
    flags = {
        "data.path": ".",
        "method.name": args.method,
        "backbone.name": chosen.backbone,
        "backbone.args": chosen.args(chosen.largest),
        "backbone.image_size": args.size,
        "train.batch_size": args.batch,
        "train.precision": "32-true",
        "train.epochs": 10,
        "train.space": space,
        "train.compile": False,
    }
    colours = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    facts = Facts(images=5000, side=args.size, colours=lambda: colours, gpus=0, cpus=2, bfloat16=False)
    config: ResolvedConfig = resolve_config(load_config(flags=flags), facts)[0]
    torch.manual_seed(0)
    return Learner(new_fabric(config.train), build_method(config), config, per_epoch=100, total=1000)


def main() -> None:
    """Run one of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    of_prune = parts.add_parser("prune")
    of_prune.add_argument("--keep", type=float, default=0.5)
    of_prune.add_argument("--backbone", default="vit_small_patch16_224")
    of_prune.set_defaults(run=prune)
    of_step = parts.add_parser("step")
    of_step.add_argument("--space", choices=SPACES, default="tiny")
    of_step.add_argument("--method", default="simclr")
    of_step.add_argument("--size", type=int, default=64)
    of_step.add_argument("--batch", type=int, default=32)
    of_step.set_defaults(run=step)
    of_learning = parts.add_parser("learning")
    of_learning.add_argument("set", type=Path)
    of_learning.add_argument("--json", type=Path, required=True)
    of_learning.add_argument("--figure", type=Path)
    of_learning.add_argument("--seeds", type=int, default=3)
    of_learning.set_defaults(run=learning)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
