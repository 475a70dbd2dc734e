"""What the settings for little memory cost and save, and what the order of pixels in memory is worth: steps of DINO.

    python benchmarks/memory.py [--backbone resnet50] [--precision bf16-mixed] [--rounds 4]

Every measurement is a process of its own, one thread, CPU time; settings alternate. Memory is the peak of three steps
of 16 images beside what the process held before the first one (networks; optimiser's state comes with a step).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch

from ssl_vit.config import load_config
from ssl_vit.run.facts import Facts
from ssl_vit.run.plan import resolve_config
from ssl_vit.run.prepare import build_method
from ssl_vit.training.fabric import new_fabric
from ssl_vit.training.speed import wants_channels_last
from ssl_vit.training.step import Learner, ReadyViews, take_step

IMAGES, STEPS = 16, 3
SETTINGS: dict[str, dict[str, object]] = {
    "as it is": {},
    "train.accumulate=4": {"train.accumulate": 4},
    "train.checkpoint_activations=true": {"train.checkpoint_activations": True},
    "both": {"train.accumulate": 4, "train.checkpoint_activations": True},
    "images plane by plane": {},
}


def cost(setting: str, backbone: str, bfloat16: bool) -> tuple[float, float]:
    """CPU seconds of a step, the first left out, and the memory that steps took, GB."""
    facts = Facts(1_281_167, 224, lambda: ((0.5,) * 3, (0.25,) * 3), gpus=0, cpus=1, bfloat16=False)
    flags = {"data.path": "none", "backbone.name": backbone, "train.batch_size": IMAGES} | SETTINGS[setting]
    flags |= {"train.precision": "bf16-mixed" if bfloat16 else "32-true"}
    config, _ = resolve_config(load_config(flags=flags), facts)
    torch.manual_seed(0)
    method = build_method(config)
    turned = wants_channels_last(method.exported().info) and setting != "images plane by plane"
    order = torch.channels_last if turned else torch.contiguous_format
    parts = config.train.accumulate
    batch = [
        torch.randn(view.count * IMAGES // parts, 3, view.size, view.size).to(memory_format=order)
        for view in method.views().views
    ]
    learner, held = Learner(new_fabric(config.train), method, config, per_epoch=50, total=100), peak()
    for step in range(STEPS):
        if step == 1:
            started = time.process_time()
        take_step(learner, ReadyViews(batch), step)
    return (time.process_time() - started) / (STEPS - 1), peak() - held


def peak() -> float:
    """Most memory of this process so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    """Alternate and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--precision", choices=["bf16-mixed", "32-true"], default="bf16-mixed")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", choices=SETTINGS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.only:
        print(*cost(args.only, args.backbone, args.precision == "bf16-mixed"))
        return
    line = [sys.executable, __file__, "--backbone", args.backbone, "--precision", args.precision, "--only"]
    found: dict[str, list[list[float]]] = {setting: [] for setting in SETTINGS}
    for _ in range(args.rounds):
        for setting, measured in found.items():
            said = subprocess.run([*line, setting], check=True, capture_output=True, text=True).stdout
            measured.append([float(word) for word in said.split()])
    print(f"{args.backbone}, {args.precision}, {IMAGES} images, medians of {args.rounds}:")
    plain = [statistics.median(column) for column in zip(*found["as it is"], strict=True)]
    for setting, measured in found.items():
        seconds, memory = (statistics.median(column) for column in zip(*measured, strict=True))
        print(f"  {setting:34} {seconds:6.2f} s a step, {seconds / plain[0]:.2f} x; {memory:5.2f} GB more in steps")


if __name__ == "__main__":
    main()
