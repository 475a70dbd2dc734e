"""Does pretraining on the images alone help a segmenter on them? stamp_scenes, a small ResNet, CPU only.

    python benchmarks/segmentation_transfer.py SCENES --out FOLDER [--weights RUN] [--heads upernet,fpt,maskformer]

SCENES: a folder with annotations_train.json and annotations_val.json (COCO boxes) and the masks that number their
objects; from both an instance file with run lengths is made, "outlined_train.json". The backbone is that of
detection_transfer.py. Each head learns from scratch and from the weights over the seeds; `--composite 2` puts two
copies of the backbone under it, or, with `--detector`, under Faster R-CNN. Everything is kept in FOLDER.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from detection_transfer import cpu_seconds, interval, pretrain
from PIL import Image

from ssl_vit.data.outlines import run_lengths
from ssl_vit.eval.api import evaluate
from ssl_vit.files import write_whole


def outlined(scenes: Path, side: str, out: Path) -> Path:
    """The COCO file of a side with an outline for each object, from the masks."""
    made = out / f"outlined_{side}.json"
    if not made.is_file():
        content = json.loads((scenes / f"annotations_{side}.json").read_text())
        masks = {}
        for image in content["images"]:
            file = scenes / Path(image["file_name"]).parents[1] / "masks" / f"{Path(image['file_name']).stem}.png"
            masks[image["id"]] = np.array(Image.open(file))
        for box in content["annotations"]:
            runs = run_lengths(masks[box["image_id"]] == box["instance_value"])
            box["segmentation"] = {"counts": runs.lengths.tolist(), "size": list(runs.size)}
        write_whole(made, lambda file: file.write(json.dumps(content).encode()))
    return made


def told(name: str, result: dict[str, Any], minutes: float) -> None:
    """Print the scores of all shares, and what it took."""
    for share, found in next(iter(result.values())).items():
        for metric in found["scratch"]:
            cells = [interval(found[arm][metric]) for arm in ("scratch", "weights", "difference")]
            print(f"{name:12}{share:6}{metric:10}{cells[0]:>22}{cells[1]:>22}{cells[2]:>22}", flush=True)
        print(f"{name:12}{share:6}{found['verdict']}")
    print(f"{name}: {minutes:.1f} min of one core", flush=True)


def main() -> None:
    """Pretrain, compare, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path, metavar="SCENES")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--weights", type=Path, metavar="RUN", help="instead of pretraining")
    parser.add_argument("--epochs", type=int, default=60, help="of pretraining (60)")
    parser.add_argument("--heads", default="upernet,fpt,maskformer")
    parser.add_argument("--detector", action="store_true", help="Faster R-CNN instead of the heads")
    parser.add_argument("--composite", type=int, default=1)
    parser.add_argument("--steps", type=int, default=400, help="of each run (400)")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--size", type=int, default=96, help="pixels a side (96)")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("ssl_vit").setLevel(logging.INFO)
    args.out.mkdir(parents=True, exist_ok=True)
    weights = args.weights or pretrain(args.scenes / "train" / "images", args.out, args.epochs, [])
    sides = {side: outlined(args.scenes, side, args.out) for side in ("train", "val")}
    shared: dict[str, Any] = sides | {"train_images": str(args.scenes), "val_images": str(args.scenes)}
    shared |= {"steps": args.steps, "size": args.size, "seeds": args.seeds, "composite": args.composite}
    for head in ["faster_rcnn"] if args.detector else args.heads.split(","):
        name = f"{head}x{args.composite}"
        file, computed = args.out / f"{name}.json", cpu_seconds()
        started = time.monotonic()
        if not file.is_file():
            kind, own = ("detection", {"detector": head}) if args.detector else ("segmentation", {"head": head})
            evaluate(kind, weights, json=file, **shared, **own)
        told(name, json.loads(file.read_text()), (cpu_seconds() - computed) / 60)
        print(f"{name}: {(time.monotonic() - started) / 60:.1f} min by the clock", flush=True)


if __name__ == "__main__":
    main()
