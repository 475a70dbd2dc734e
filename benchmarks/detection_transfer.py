"""Does pretraining on the images alone help a detector on them? stamp_scenes, a small ResNet, CPU only.

    python benchmarks/detection_transfer.py SCENES --out FOLDER [--weights RUN]

SCENES: a folder with annotations_train.json and annotations_val.json (COCO). A ResNet-18 of half width learns from the
training images without labels (DINO), or comes from --weights; then `ssl-vit eval detection` trains a Faster R-CNN from
scratch and from the weights, three seeds, on all labels and on a tenth. The classes are the 18 of the set, or with
--one-class "object" alone: where things are, not what. Everything is kept in FOLDER; run again, it goes on there.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from ssl_vit.config import load_config
from ssl_vit.eval.api import evaluate
from ssl_vit.files import write_whole
from ssl_vit.run.pretrain import pretrain as start_run

BACKBONE = {"backbone.name": "resnet18", "backbone.args": {"channels": [32, 64, 128, 256]}}


def boxes(scenes: Path, side: str, out: Path, one_class: bool) -> Path:
    """The COCO file of a side, with one class if that is asked for."""
    own = scenes / f"annotations_{side}.json"
    if not one_class:
        return own
    content = json.loads(own.read_text())
    content["categories"] = [{"id": 1, "name": "object"}]
    for box in content["annotations"]:
        box["category_id"] = 1
    merged = out / own.name
    write_whole(merged, lambda file: file.write(json.dumps(content).encode()))
    return merged


def pretrain(images: Path, out: Path, epochs: int, more: list[str]) -> Path:
    """A run of DINO with the settings that "auto" gives, but for a narrower head, fewer crops and AdamW."""
    run = out / "run"
    if not (run / "COMPLETE").is_file():
        flags: dict[str, Any] = BACKBONE | {
            "data.path": str(images),
            "method.name": "dino",
            "method.hidden_dim": 512,
            "method.local_crops": 4,
            "backbone.image_size": 64,
            "optim.optimizer": "adamw",
            "optim.lr": 1e-3,
            "train.batch_size": 64,
            "train.epochs": epochs,
        }
        started = time.monotonic()
        start_run(load_config([], more, flags), run, resume=run.exists())
        print(f"pretrained in {(time.monotonic() - started) / 60:.1f} min", flush=True)
    return run


def table(result: dict[str, Any]) -> str:
    """Means over the seeds with 95 % intervals, in percent."""
    lines = [f"{'labels':8}{'score':9}{'scratch':>22}{'weights':>22}{'difference':>22}"]
    for share, found in result["detection"].items():
        for name in found["scratch"]:
            cells = [interval(found[arm][name]) for arm in ("scratch", "weights", "difference")]
            lines.append(f"{share:8}{name:9}{cells[0]:>22}{cells[1]:>22}{cells[2]:>22}")
        lines.append(f"{share:8}{found['verdict']}")
    return "\n".join(lines)


def interval(found: dict[str, Any]) -> str:
    """A mean and what it lies between."""
    return f"{found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def cpu_seconds() -> float:
    """Of this process and of those that read images for it."""
    return sum(os.times()[:4])


def main() -> None:
    """Pretrain, compare, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path, metavar="SCENES")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--weights", type=Path, metavar="RUN", help="instead of pretraining")
    parser.add_argument("--epochs", type=int, default=60, help="of pretraining (60)")
    parser.add_argument("--one-class", action="store_true")
    parser.add_argument("--steps", type=int, default=400, help="of each detector (400)")
    parser.add_argument("--size", type=int, default=96, help="pixels a side (96)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of pretraining")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("ssl_vit").setLevel(logging.INFO)
    args.out.mkdir(parents=True, exist_ok=True)
    weights = args.weights or pretrain(args.scenes / "train" / "images", args.out, args.epochs, args.set)
    told = args.out / "detection.json"
    if told.is_file():
        print(table(json.loads(told.read_text())))
        return
    started, computed = time.monotonic(), cpu_seconds()
    result = evaluate(
        "detection",
        weights,
        json=told,
        train=boxes(args.scenes, "train", args.out, args.one_class),
        val=boxes(args.scenes, "val", args.out, args.one_class),
        train_images=str(args.scenes),
        val_images=str(args.scenes),
        share=(10.0, 100.0),
        steps=args.steps,
        size=args.size,
    )
    minutes, of_cpu = (time.monotonic() - started) / 60, (cpu_seconds() - computed) / 60
    print(f"{table(result)}\neval detection took {minutes:.1f} min, {of_cpu:.1f} min of one core", flush=True)


if __name__ == "__main__":
    main()
