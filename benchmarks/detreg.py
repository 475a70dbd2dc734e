"""Does DETReg help a Deformable DETR where labels are few? From nothing to the table, on CPU.

    python benchmarks/detreg.py SCENES FOLDER --figure benchmarks/results/detreg.png

SCENES: annotations_train.json, annotations_val.json, and the images of the first in train/images/. A small ResNet is
pretrained on these images by DINO, a small Deformable DETR around it by DETReg (both without labels), and then the
detector is fine-tuned on a tenth of the labels three times over: from scratch, from the backbone's weights alone, and
from all that was pretrained, over three seeds, by ``ssl-vit eval detection``. With --one-class the labels are merged:
where things are, not what. FOLDER keeps everything; what is there is not made again, and what was stopped goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import torch
from detection_transfer import boxes
from matplotlib.figure import Figure

from ssl_vit.config import load_config
from ssl_vit.eval.api import evaluate
from ssl_vit.report.figures import ACCENT, FAINT, INK, SECOND, STYLE, read_metrics, save_figure, series, smooth
from ssl_vit.run.pretrain import pretrain

SIZE, SHARE, SEEDS = 128, 10.0, (0, 1, 2)  # pixels a side; percent of the images that have labels
ARMS = {"scratch": "from scratch", "backbone": "DINO's backbone", "weights": "DINO's backbone, DETReg"}
BACKBONE = {"backbone.name": "resnet18", "backbone.args": {"channels": [32, 64, 128, 256]}, "backbone.image_size": 64}
DINO = BACKBONE | {
    "method.name": "dino",
    "method.local_crops": 2,
    "method.hidden_dim": 512,
    "optim.optimizer": "adamw",  # the recipe's SGD, made for thousands of steps, moves too little in so few
    "optim.lr": 1e-3,
    "optim.weight_decay": 0.04,
    "train.batch_size": 32,
    "train.epochs": 12,
}
DETREG = {
    "method.name": "detreg",
    "method.dim": 64,
    "method.hidden": 256,
    "method.crop_size": 32,
    "backbone.image_size": SIZE,
    "train.batch_size": 16,
    "train.epochs": 12,
}


def pretrained(scenes: Path, out: Path, settings: dict[str, Any], more: list[str]) -> Path:
    """A run that is complete, begun or gone on with where it isn't."""
    if (out / "COMPLETE").exists():
        return out
    if (out / "config.yaml").exists():
        pretrain(load_config([out / "config.yaml"]), out, resume=True)
        return out
    flags = {"data.path": str(scenes / "train" / "images"), "data.workers": 0} | settings
    pretrain(load_config([], more, flags), out)
    return out


def table(found: dict[str, Any]) -> str:
    """Means over seeds with their intervals, each seed, and the two differences."""
    lines = [f"{'begins with':28}{'mAP (95 %)':>20}{'mAP50 (95 %)':>20}   mAP50 of each seed"]
    rows = [*ARMS.items(), ("difference", "all - scratch"), ("difference_from_backbone", "all - backbone alone")]
    for key, name in rows:
        told = [_interval(found[key][score]) for score in ("mAP", "mAP50")]
        each = " ".join(f"{value:6.2f}" for value in found[key]["mAP50"]["seeds"])
        lines.append(f"{name:28}{told[0]:>20}{told[1]:>20}   {each}")
    return "\n".join([*lines, found["verdict"]])


def _interval(mean: dict[str, Any]) -> str:
    return f"{mean['mean']:.2f} ({mean['low']:.2f} {mean['high']:.2f})"


def curves(run: Path, found: dict[str, Any]) -> Figure:
    """How DETReg learns, and what fine-tuning makes of it."""
    rows = read_metrics(run)
    with mpl.rc_context(cast(Any, STYLE)):
        figure = Figure(figsize=(12, 3.6), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        for key, name, colour in (("loss", "its own image", ACCENT), ("blind_loss", "the next image", FAINT)):
            steps, values = series(rows, key)
            left.plot(steps, smooth(values, 25), color=colour, label=name)
        left.set(title="DETReg's loss", xlabel="step", ylim=(0, None))
        left.legend(title="answers are held against", frameon=False)
        for key, name, colour in (("found", "found (IoU 0.5)", ACCENT), ("overlap", "mean IoU", SECOND)):
            steps, values = series(rows, key)
            middle.plot(steps, smooth(values, 25), color=colour, label=name)
        middle.set(title="Proposed regions", xlabel="step", ylim=(0, 1))
        middle.legend(frameon=False)
        for place, arm in enumerate(ARMS):
            seeds = found[arm]["mAP50"]["seeds"]
            right.bar(place, found[arm]["mAP50"]["mean"], color=FAINT)
            right.scatter([place] * len(seeds), seeds, color=INK, zorder=2, s=14)
        right.set(title=f"mAP50 with {SHARE:g} % of the labels", xticks=range(len(ARMS)))
        right.set_xticklabels([name.replace(", ", ",\n") for name in ARMS.values()])
        right.tick_params(axis="x", labelsize=8)
    return figure


def main() -> None:
    """Make what is missing, then print the table and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path, metavar="SCENES")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=400, help="of each fine-tuning")
    parser.add_argument("--lr", type=float, default=5e-4, help="of fine-tuning")
    parser.add_argument("--one-class", action="store_true", help='every box is an "object"')
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of DETReg's run")
    parser.add_argument("--figure", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    dino = pretrained(args.scenes, args.folder / "dino", DINO, [])
    run = pretrained(args.scenes, args.folder / "detreg", DETREG | {"backbone.weights": str(dino)}, args.set)
    sides = {side: boxes(args.scenes, side, args.folder, args.one_class) for side in ("train", "val")}
    images = {side: str(args.scenes) if args.one_class else "auto" for side in sides}
    kind = f"{args.steps}-one-class" if args.one_class else str(args.steps)
    result = evaluate(
        "detection",
        run,
        train=sides["train"],
        val=sides["val"],
        detector="deformable_detr",
        seeds=SEEDS,
        share=(SHARE,),
        steps=args.steps,
        size=SIZE,
        batch=8,
        lr=args.lr,
        backbone_lr=args.lr,
        train_images=images["train"],
        val_images=images["val"],
        json=args.folder / f"score-{kind}.json",
    )
    found = result["detection"][f"{SHARE:g}%"]
    print(table(found), flush=True)
    if args.figure is not None:
        save_figure(curves(run, found), args.figure)


if __name__ == "__main__":
    main()
