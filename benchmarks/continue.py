"""What going on from weights costs: steps with LoRA and with anchors beside plain ones.

    python benchmarks/continue.py costs [--rounds 3] [--networks vit_small] [--steps 3]

One thread, CPU time; each measurement in a process of its own, the settings alternate, and what counts is the ratio of
medians. Memory is the most that the process has held in the steps, less what it held before the network was built: so
it is that of weights, gradients, moments and what is kept for backward, as on a GPU. Limits: LoRA at most 0.6 of the
memory and 0.85 of the time of a whole step, anchors at most 1.12 of its time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

IMAGES = 2_000  # of the set that the recipe is for
SETTINGS: dict[str, dict[str, Any]] = {
    "whole": {},
    "lora": {"adapt.lora_rank": 8},
    "anchors": {
        "adapt.anchor_pooled_cosine": 1.0,
        "adapt.anchor_pooled_squared": 1.0,
        "adapt.anchor_patch_cosine": 1.0,
        "adapt.anchor_patch_squared": 1.0,
        "adapt.l2_sp": 0.01,
    },
}
NETWORKS: dict[str, dict[str, Any]] = {
    "vit_tiny": {"backbone.name": "vit_tiny_patch16_224", "train.batch_size": 8},
    "vit_small": {"backbone.name": "vit_small_patch16_224", "train.batch_size": 4},
    "vit_base": {"backbone.name": "vit_base_patch16_224", "train.batch_size": 2},
}


def step(method: str, network: str, setting: str, precision: str, steps: int) -> dict[str, float]:
    """CPU seconds of a step, the first left out, and the memory of those, GB."""
    import torch

    from ssl_vit.config import load_config
    from ssl_vit.run.facts import Facts
    from ssl_vit.run.plan import resolve_config
    from ssl_vit.run.prepare import build_method
    from ssl_vit.training.fabric import new_fabric
    from ssl_vit.training.step import Learner, ReadyViews, take_step

    torch.set_num_threads(1)
    facts = Facts(IMAGES, 224, lambda: ((0.5,) * 3, (0.25,) * 3), gpus=0, cpus=1, bfloat16=False)
    flags = {"data.path": "none", "method.name": method, "train.precision": precision, "backbone.weights": "a file"}
    flags |= {"backbone.image_size": 224, "optim.heads_first": 0} | NETWORKS[network] | SETTINGS[setting]
    config, _ = resolve_config(load_config(flags=flags), facts)
    batch = [torch.randn(v.count * config.train.batch_size, 3, v.size, v.size) for v in config.method.views(224).views]
    before = memory("VmRSS")
    torch.manual_seed(0)
    learner = Learner(new_fabric(config.train), build_method(config), config, per_epoch=50, total=100)
    for number in range(1 + steps):
        if number == 1:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            started = time.process_time()
        take_step(learner, ReadyViews(batch), number)
    return {"seconds": (time.process_time() - started) / steps, "memory": memory("VmHWM") - before}


def memory(which: str) -> float:
    """What the process holds, or the most since that was last begun anew, GB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which)]
    return int(line.split()[1]) / 1e6


def costs(args: argparse.Namespace) -> None:
    for network in args.networks:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
        for _ in range(args.rounds):
            for name, measured in found.items():
                given = [args.method, network, name, args.precision, str(args.steps)]
                done = subprocess.run([sys.executable, __file__, "step", *given], capture_output=True, check=True)
                measured.append(json.loads(done.stdout.splitlines()[-1]))
        middle = {
            name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in found.items()
        }
        batch = NETWORKS[network]["train.batch_size"]
        print(f"{args.method}, {network}, {batch} images of 224, {args.precision}; medians of {args.rounds} rounds")
        for name, each in middle.items():
            ratio = {key: value / middle["whole"][key] for key, value in each.items()}
            said = f"{each['seconds']:7.3f} s  {each['memory']:6.3f} GB"
            print(f"{name:8} {said}   x {ratio['seconds']:.3f} of time, x {ratio['memory']:.3f} of memory", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="what", required=True)
    measured = parts.add_parser("costs")
    measured.add_argument("--rounds", type=int, default=3)
    measured.add_argument("--steps", type=int, default=3)
    measured.add_argument("--method", default="dino")
    measured.add_argument("--precision", default="32-true")
    measured.add_argument("--networks", nargs="+", default=["vit_small"], choices=NETWORKS)
    one = parts.add_parser("step")
    one.add_argument("given", nargs=5)
    args = parser.parse_args()
    if args.what == "costs":
        costs(args)
    else:
        method, network, setting, precision, steps = args.given
        print(json.dumps(step(method, network, setting, precision, int(steps))))


if __name__ == "__main__":
    main()
