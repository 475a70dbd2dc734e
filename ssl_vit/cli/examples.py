"""Two command lines for each command, which stand in its help."""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, str]] = {
    "pretrain": (
        "ssl-vit pretrain photos/ --out runs/first",
        "ssl-vit pretrain photos/ --out runs/second --method dino --backbone vit_small_patch16_224 --val labelled/val",
    ),
    "eval": (
        "ssl-vit eval knn runs/first --train labelled/train --val labelled/val",
        "ssl-vit eval labelfree runs/first --data photos/ --json runs/first/labelfree.json",
    ),
    "compare": (
        "ssl-vit compare runs/first runs/second --train labelled/train --val labelled/val",
        "ssl-vit compare runs/first dino.pth --kind linear --train labelled/train --val labelled/val --json both.json",
    ),
    "compress": (
        "ssl-vit compress prune runs/first photos/ --keep 0.5 --out runs/pruned",
        "ssl-vit compress search photos/ --space tiny --parameters 5.5 --out runs/searched",
    ),
    "compress prune": (
        "ssl-vit compress prune runs/first photos/ --keep 0.5 --out runs/pruned",
        "ssl-vit compress prune runs/first photos/ --keep 0.7 --epochs 20 --out runs/pruned --resume",
    ),
    "compress shrink": (
        "ssl-vit compress shrink runs/sparse --out runs/small",
        "ssl-vit compress shrink hf-hub:owner/name --out small",
    ),
    "compress search": (
        "ssl-vit compress search photos/ --space tiny --parameters 5.5 --out runs/searched",
        "ssl-vit compress search photos/ --space micro --latency 2 --labelled labelled/val --out runs/searched",
    ),
    "report": (
        "ssl-vit report runs/first",
        "ssl-vit report runs/first runs/second both.json --out both.html",
    ),
    "export": (
        "ssl-vit export runs/first --to torchvision --out weights/",
        "ssl-vit export dino.pth --to onnx",
    ),
    "inspect": ("ssl-vit inspect dino.pth", "ssl-vit inspect hf-hub:owner/name"),
    "embed": (
        "ssl-vit embed runs/first photos/ --out features.npz",
        "ssl-vit embed dino.pth photos/ --layers -1,-2 --pooling mean --out features.parquet",
    ),
    "pack": ("ssl-vit pack photos/ --to shards/", "ssl-vit pack photos/ more/ --to shards/ --size 512"),
    "bench": (
        "ssl-vit bench photos/",
        "ssl-vit bench photos/ --method dino --set data.workers=8 --chart parts.png",
    ),
    "doctor": ("ssl-vit doctor", "ssl-vit doctor photos/ --out runs --json findings.json"),
    "list": ("ssl-vit list methods", "ssl-vit list backbones '*swin*' --json"),
    "matrix": ("ssl-vit matrix", "ssl-vit matrix '*swin*' --json"),
    "sweep": (
        "ssl-vit sweep configs/sweeps/methods.yaml photos/ --out runs/methods",
        "ssl-vit sweep configs/sweeps/methods.yaml photos/ --out runs/methods --dry-run",
    ),
    "demo": ("ssl-vit demo", "ssl-vit demo --out digits"),
}


def of_kind(kind: str, folders: Mapping[str, str]) -> tuple[str, str]:
    """Two command lines for a kind of score.

    >>> of_kind("knn", {"train": "images"})[0]
    'ssl-vit eval knn runs/first --train labelled/train'
    """
    flags = " ".join(f"--{folder} labelled/{folder}" for folder in folders)
    line = f"ssl-vit eval {kind} runs/first {flags}".rstrip()
    return line, f"{line} --json runs/first/{kind}.json"


def as_text(lines: tuple[str, ...]) -> str:
    """The part of a help that shows them; "" where there are none."""
    return "\n".join(["examples:", *(f"  {line}" for line in lines)]) if lines else ""
