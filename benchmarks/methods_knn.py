"""k-NN before and after pretraining: every method on a small transformer and a small Swin, on small sets, CPU only.

    python benchmarks/methods_knn.py DIGITS ICONS --json benchmarks/results/methods_knn.json

DIGITS, ICONS: folders with train/ and val/, one sub-folder a class. On each set all runs see the same number of images
in batches of the same size, with the settings that "auto" gives, but narrower heads; the score is k-NN top-1 (k = 20)
on val/. A run that is in the file already is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_vit.config import load_config
from ssl_vit.files import write_atomically
from ssl_vit.methods import config_class
from ssl_vit.run.pretrain import pretrain
from ssl_vit.tokenizers.tokenizer import Grid
from ssl_vit.tokenizers.vq import VQ

SETS = {"digits": (32, 5), "icons": (64, 5)}  # pixels; passes over the images
BACKBONES = {  # what "auto" makes of a ViT-Tiny for small images on a CPU, and a Swin of two stages: grids of 4 x 4
    "vit": ("vit_tiny_patch16_224", {"embed_dim": 128, "depth": 4, "num_heads": 4, "global_pool": "avg"}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 64, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    ),
}
UNTRAINED = "beit, untrained tokenizer"  # a random network names the words of what patches show
DRAWN = "beit, random words"  # words that have nothing to do with what patches show
METHODS = ("dino", "moby", "esvit", "ibot", "beit", UNTRAINED, DRAWN, "mae")
HIDDEN = {"dino": 512, "esvit": 512, "ibot": 512, "moby": 1024}  # width of heads: a quarter of the published
BATCH, SEEDS = 64, 3


def run(folder: Path, data: str, backbone: str, method: str, seed: int, more: list[str]) -> dict[str, Any]:
    """One run; k-NN before and after, seconds, and the verdict."""
    (size, epochs), (name, args) = SETS[data], BACKBONES[backbone]
    args = args | {"patch_size": size // (4 if backbone == "vit" else 8)}
    if backbone == "vit":
        args |= {"weight_init": "moco"}
    bare = method.partition(",")[0]
    if (reason := config_class(bare).plain_only) and backbone != "vit":
        return {"refused": reason}
    flags: dict[str, Any] = {
        "data.path": str(folder / "train"),
        "data.val": str(folder / "val"),
        "data.workers": 0,
        "backbone.name": name,
        "backbone.args": args,
        "backbone.image_size": size,
        "method.name": bare,
        "method.flip": 0.0 if data == "digits" else 0.5,
        "train.batch_size": BATCH,
        "train.epochs": epochs,
        "train.seed": seed,
        "health.knn_every": float(epochs),
    }
    if bare in HIDDEN:
        flags["method.hidden_dim"] = HIDDEN[bare]
    if method in (UNTRAINED, DRAWN):
        flags["method.tokenizer_steps"] = 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, words_drawn() if method == DRAWN else nullcontext():
        out = Path(scratch) / "run"
        result = pretrain(load_config([], more, flags), out)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    scores = [row["knn/20"] for row in rows if "knn/20" in row]
    verdict = result.verdict.sentence if result.verdict else ""
    seconds = time.monotonic() - started
    return {
        "before": scores[0],
        "after": scores[-1],
        "steps": result.steps,
        "seconds": round(seconds),
        "verdict": verdict,
    }


@contextmanager
def words_drawn() -> Iterator[None]:
    """Every word of the fitted kind of tokenizer is drawn at random, anew at each step."""
    forward = VQ.forward

    def drawn(tokenizer: VQ, images: Tensor, grid: Grid) -> Tensor:
        return torch.randint(tokenizer.codes, (len(images), *grid))

    VQ.forward = drawn  # type: ignore[method-assign]  # for the time of one run
    try:
        yield
    finally:
        VQ.forward = forward  # type: ignore[method-assign]  # as it was


def table(runs: dict[str, dict[str, Any]]) -> str:
    """Means over seeds, the gains of each seed, and whether all are gains."""
    lines = ["set     backbone  method                       before   after   gain of each seed      every seed gains"]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for key, found in runs.items():
        groups.setdefault(tuple(key.split("/")[:3]), []).append(found)
    for (data, backbone, method), found in groups.items():
        if "refused" in found[0]:
            lines.append(f"{data:8}{backbone:10}{method:27} refused: it is {found[0]['refused']}")
            continue
        gains = [one["after"] - one["before"] for one in found]
        before, after = (statistics.mean(one[key] for one in found) for key in ("before", "after"))
        each = " ".join(f"{gain:+6.1f}" for gain in gains)
        holds = "yes" if min(gains) > 0 else "no"
        lines.append(f"{data:8}{backbone:10}{method:27}{before:8.1f}{after:8.1f}   {each:23}{holds}")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs=len(SETS), type=Path, metavar="FOLDER")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where results are kept")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of all runs")
    args = parser.parse_args()
    runs: dict[str, dict[str, Any]] = json.loads(args.json.read_text()) if args.json.exists() else {}
    folders = dict(zip(SETS, args.folders, strict=True))
    for seed in range(args.seeds):
        for data in args.sets:
            for backbone in args.backbones:
                for method in args.methods:
                    key = f"{data}/{backbone}/{method}/{seed}"
                    if key in runs:
                        continue
                    runs[key] = run(folders[data], data, backbone, method, seed, args.set)
                    write_atomically(args.json, lambda path: path.write_text(json.dumps(runs, indent=1) + "\n"))
                    print(key, runs[key], flush=True)
    print(table(dict(sorted(runs.items()))))


if __name__ == "__main__":
    main()
