"""What techniques of training cost in time and memory, and what they do to a small network on a small set.

    python benchmarks/techniques.py costs [--rounds 4]
    python benchmarks/techniques.py learning DIGITS --json benchmarks/results/techniques.json --figures docs/images
    python benchmarks/techniques.py pictures DIGITS --figures docs/images

`costs`: one thread, CPU time; settings alternate, and what counts is the ratio of medians. `pictures`: the schedules,
and what AugReg's presets do to images. `learning`: DIGITS has
train/ and val/, one sub-folder a class; the same runs plain, with SAM and with diversification, for each of three
seeds, all of as many epochs: so SAM has twice the time. They take a minute or two on one core, of the first images of
each class. Runs that are in the file already are not made again; the first seed is drawn.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

STEPS = 3
TECHNIQUES: dict[str, dict[str, Any]] = {
    "plain": {},
    "sam": {"optim.sam_rho": 0.1},
    "diversify": {"train.diversify": 1.0},
}
SEEDS = (0, 1, 2)
OF_A_CLASS, EPOCHS, BATCH = 150, 4, 32  # images, passes over them, images a step
NETWORK = {"patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 3, "global_pool": "avg", "weight_init": "moco"}
NETWORKS: dict[str, dict[str, Any]] = {  # whose costs are measured
    "ViT-Ti/16, 4 images of 224": {"backbone.name": "vit_tiny_patch16_224", "train.batch_size": 4},
    "the small ViT of `learning`, 32 images of 32": {
        "backbone.name": "vit_tiny_patch16_224",
        "backbone.args": NETWORK,
        "backbone.image_size": 32,
        "train.batch_size": 32,
    },
}


def cost(technique: str, network: str) -> tuple[float, float]:
    """CPU seconds of a step of DINO, the first left out, and the most memory in those, GB."""
    import torch

    from ssl_vit.config import load_config
    from ssl_vit.run.facts import Facts
    from ssl_vit.run.plan import resolve_config
    from ssl_vit.run.prepare import build_method
    from ssl_vit.training.fabric import new_fabric
    from ssl_vit.training.step import Learner, ReadyViews, take_step

    torch.set_num_threads(1)
    facts = Facts(1_281_167, 224, lambda: ((0.5,) * 3, (0.25,) * 3), gpus=0, cpus=1, bfloat16=False)
    flags = {"data.path": "none", "method.name": "dino", "train.precision": "32-true"}
    flags |= NETWORKS[network] | TECHNIQUES[technique]
    images = NETWORKS[network]["train.batch_size"]
    config, _ = resolve_config(load_config(flags=flags), facts)
    torch.manual_seed(0)
    method = build_method(config)
    batch = ReadyViews([torch.randn(view.count * images, 3, view.size, view.size) for view in method.views().views])
    learner = Learner(new_fabric(config.train), method, config, per_epoch=50, total=100)
    for step in range(STEPS):
        if step == 1:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            started = time.process_time()
        take_step(learner, batch, step)
    return (time.process_time() - started) / (STEPS - 1), peak()


def peak() -> float:
    """The most memory that the process has had since that was last begun anew, GB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1e6


def states() -> tuple[int, int]:
    """Bytes of the states of AdamW and of Adafactor for a ViT-G/14, without the memory: on the meta device."""
    import torch

    from ssl_vit.backbones import create_backbone
    from ssl_vit.training.optim import make_optimizer

    with torch.device("meta"):
        model = create_backbone("vit_gigantic_patch14_map_224")
    found = []
    for name in ("adamw", "adafactor"):
        optimizer = make_optimizer(model, name, 1e-3)
        for weight in model.parameters():
            weight.grad = torch.empty_like(weight)
        for group in optimizer.param_groups:
            if name == "adamw":
                group |= {"fused": False, "foreach": False}  # the same states, and no kernel for the meta device
        optimizer.step()
        state = [each for kept in optimizer.state.values() for each in kept.values() if isinstance(each, torch.Tensor)]
        found.append(sum(each.numel() * each.element_size() for each in state))
    return found[0], found[1]


def costs(rounds: int) -> None:
    for network in NETWORKS:
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in TECHNIQUES}
        for _ in range(rounds):
            for name, measured in found.items():
                measured.append(cost(name, network))
                gc.collect()
        middle = {name: [statistics.median(each) for each in zip(*rows, strict=True)] for name, rows in found.items()}
        print(f"A step of DINO, {network}, fp32, one thread; medians of {rounds} rounds")
        for name, (seconds, memory) in middle.items():
            longer, larger = (mine / plain for mine, plain in zip((seconds, memory), middle["plain"], strict=True))
            print(f"{name:10} {seconds:6.3f} s  {memory:5.2f} GB   x {longer:.3f} of time, x {larger:.3f} of memory")
    adamw, adafactor = states()
    said = f"AdamW {adamw / 1e9:.2f} GB, Adafactor {adafactor / 1e9:.2f} GB: x {adafactor / adamw:.3f}"
    print(f"ViT-G/14's states: {said}", flush=True)


def learn(folder: Path, technique: str, seed: int, run: Path, figures: Path | None) -> dict[str, Any]:
    """A run, its k-NN, how alike its patches are at each depth, and how sharp its loss is."""
    from ssl_vit.data.sources import open_source
    from ssl_vit.eval.api import evaluate
    from ssl_vit.eval.job import Job
    from ssl_vit.eval.labelfree import first_images, patch_cosines
    from ssl_vit.run.pretrain import pretrain

    settings = {
        "method.name": "simclr",
        "backbone.name": "vit_tiny_patch16_224",
        "backbone.args": NETWORK,
        "backbone.image_size": 32,
        "train.epochs": EPOCHS,
        "train.batch_size": BATCH,
        "train.seed": seed,
        "train.precision": "32-true",
        "optim.warmup_epochs": 1.0,
        "data.workers": 0,
        "health.every": 1000,
    }
    pretrain(str(folder / "train"), run, settings | TECHNIQUES[technique])
    sides = {"train": str(folder / "train"), "val": str(folder / "val")}
    knn = evaluate("knn", run, **sides, k=(20,))["knn"]
    job = Job(run, {})
    alike = patch_cosines(job.backbone, first_images(job, open_source(sides["val"])))
    drawn = figures is not None and seed == SEEDS[0] and technique != "diversify"
    sharp = evaluate("sharpness", run, data=sides["train"], images=BATCH, iterations=20, places=9 if drawn else 3)
    if figures is not None and drawn:
        from ssl_vit.report.figures import save_figure
        from ssl_vit.report.sharpness import figure

        save_figure(figure(sharp), figures / f"sharpness_{technique}.png")
    found = {"knn": knn, "patch_cosine": alike, "eigenvalue": sharp["sharpness"]["eigenvalue"]}
    return found | {"loss": sharp["sharpness"]["loss"]}


def learning(folder: Path, file: Path, figures: Path) -> None:
    import torch

    torch.set_num_threads(1)
    found = json.loads(file.read_text()) if file.exists() else {}
    few = Path(tempfile.mkdtemp())
    for image in sorted(folder.glob("*/*/*")):
        place = few / image.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        if len(list(place.parent.iterdir())) < OF_A_CLASS:
            shutil.copy(image, place)
    for seed in SEEDS:
        for technique in TECHNIQUES:
            name = f"{technique}/{seed}"
            if name not in found:
                with tempfile.TemporaryDirectory() as place:
                    found[name] = learn(few, technique, seed, Path(place) / "run", figures)
                file.write_text(json.dumps(found, indent=1) + "\n")
                print(f"{name}: {time.process_time():.0f} CPU seconds by now", flush=True)
    depth_figure(found, figures / "patch_cosine.png")
    table(found)


def table(found: dict[str, Any]) -> None:
    """Mean and range over seeds."""
    for technique in TECHNIQUES:
        rows = [row for name, row in found.items() if name.startswith(f"{technique}/")]
        knn = [top1(row["knn"]) for row in rows]
        sharp, last = [row["eigenvalue"] for row in rows], [row["patch_cosine"][-1] for row in rows]
        figures = (("k-NN, %", knn), ("eigenvalue", sharp), ("patch cosine, last layer", last))
        said = [f"{key} {statistics.fmean(all_):.4g} ({min(all_):.4g} to {max(all_):.4g})" for key, all_ in figures]
        print(f"{technique:10} {'; '.join(said)}; {len(rows)} seeds")


def top1(scores: Any) -> float:
    """The one number among k-NN's scores for one k: the best vote's."""
    values = scores.values() if isinstance(scores, dict) else scores if isinstance(scores, list) else [scores]
    return max(top1(each) if isinstance(each, dict | list) else float(each) for each in values)


def depth_figure(found: dict[str, Any], path: Path) -> None:
    """How alike patches are over depth, plain and diversified, a line a seed."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from ssl_vit.drawing import ACCENT, INK, STYLE
    from ssl_vit.report.figures import save_figure

    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # its keys are names
        drawn = Figure(figsize=(6, 4), layout="constrained")
        axes = drawn.add_subplot()
        for technique, colour in (("plain", INK), ("diversify", ACCENT)):
            rows = [row["patch_cosine"] for name, row in found.items() if name.startswith(f"{technique}/")]
            for number, row in enumerate(rows):
                label = technique if number == 0 else None
                axes.plot(range(1, len(row) + 1), row, color=colour, marker="o", markersize=3, label=label)
        axes.set(title="How alike two patches of an image are", xlabel="layer", ylabel="absolute cosine", ylim=(0, 1))
        axes.legend(frameon=False)
    save_figure(drawn, path)


def schedules_figure(path: Path) -> None:
    """The learning rate over a run of 100 epochs, 5 of warm-up and 20 of cool-down."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from ssl_vit.drawing import ACCENT, FAINT, INK, SECOND, STYLE
    from ssl_vit.report.figures import save_figure
    from ssl_vit.schedules import held, rsqrt, warmup_cosine

    ends = (1.0, 0.0)
    drawn = {
        "cosine": (INK, lambda step: warmup_cosine(*ends, step, 1000, 50)),
        "rsqrt": (ACCENT, lambda step: rsqrt(*ends, step, 1000, 50, 200)),
        "wsd": (SECOND, lambda step: held(*ends, step, 1000, 50, 200)),
        "constant": (FAINT, lambda step: held(*ends, step, 1000, 50, 0)),
    }
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # its keys are names
        figure = Figure(figsize=(6, 3.2), layout="constrained")
        axes = figure.add_subplot()
        for name, (colour, rate) in drawn.items():
            axes.plot(
                [step / 10 for step in range(1001)], [rate(step) for step in range(1001)], color=colour, label=name
            )
        axes.set(title="The learning rate of each schedule", xlabel="epoch of 100", ylabel="share of the peak")
        axes.legend(frameon=False)
    save_figure(figure, path)


def presets_figure(folder: Path, path: Path) -> None:
    """A few images as each of AugReg's presets gives them to the network, a row a preset."""
    import matplotlib as mpl
    import numpy as np
    import torch
    from matplotlib.figure import Figure
    from PIL import Image

    from ssl_vit.drawing import STYLE
    from ssl_vit.eval.finetune_recipe import PRESETS, augmenting, mixing
    from ssl_vit.eval.kinds.finetune import Finetune
    from ssl_vit.report.figures import save_figure

    files = [sorted((folder / "train" / str(digit)).iterdir())[0] for digit in range(8)]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file).convert("RGB"))) for file in files])
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # its keys are names
        figure = Figure(figsize=(8, 7.4), layout="constrained")
        for row, preset in enumerate(PRESETS):
            random.seed(row)
            np.random.seed(row)
            asked, shown = Finetune(preset=preset), pixels.clone()
            augmenting(asked)(SimpleNamespace(places=[[shown]]))  # type: ignore[arg-type]  # all it reads
            mixed = shown.permute(0, 3, 1, 2).float()
            if PRESETS[preset].mixup:
                mixed, _ = mixing(asked, 10)(mixed, torch.arange(8))
            for column, image in enumerate(mixed.permute(0, 2, 3, 1).byte().numpy()):
                axes = figure.add_subplot(len(PRESETS), 8, row * 8 + column + 1)
                axes.imshow(image)
                axes.set(xticks=[], yticks=[])
                if not column:
                    axes.set_ylabel(preset)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["costs", "learning", "pictures"])
    parser.add_argument("where", nargs="?")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", type=Path, default=Path("techniques.json"))
    parser.add_argument("--figures", type=Path, default=Path())
    args = parser.parse_args()
    if args.what == "costs":
        costs(args.rounds)
    elif args.what == "pictures":
        schedules_figure(args.figures / "schedules.png")
        presets_figure(Path(args.where), args.figures / "augreg.png")
    else:
        learning(Path(args.where), args.json, args.figures)


if __name__ == "__main__":
    main()
