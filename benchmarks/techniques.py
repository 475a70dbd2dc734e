"""What techniques of training cost in time and memory, and what they do to a small network on a small set.

    python benchmarks/techniques.py costs [--rounds 4]
    python benchmarks/techniques.py learning DIGITS --json benchmarks/results/techniques.json --figures docs/images

`costs`: one thread, CPU time; settings alternate, and what counts is the ratio of medians. `learning`: DIGITS has
train/ and val/, one sub-folder a class; the same runs plain, with SAM and with diversification, for each of three
seeds, all of as many epochs: so SAM has twice the time. They are of a minute on one core, from the first images of each
class. Runs that are in the file already are not made again; the first seed is drawn.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

IMAGES, STEPS = 8, 3
TECHNIQUES: dict[str, dict[str, Any]] = {
    "plain": {},
    "sam": {"optim.sam_rho": 0.1},
    "diversify": {"train.diversify": 1.0},
}
SEEDS = (0, 1, 2)
OF_A_CLASS, EPOCHS, BATCH = 150, 1, 32  # images, passes over them, images a step
NETWORK = {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3, "global_pool": "avg", "weight_init": "moco"}


def cost(technique: str) -> tuple[float, float]:
    """CPU seconds of a step of DINO on a ViT-Ti/16, the first left out, and the most memory in those, GB."""
    import torch

    from ssl_vit.config import load_config
    from ssl_vit.run.facts import Facts
    from ssl_vit.run.plan import resolve_config
    from ssl_vit.run.prepare import build_method
    from ssl_vit.training.fabric import new_fabric
    from ssl_vit.training.step import Learner, ReadyViews, take_step

    torch.set_num_threads(1)
    facts = Facts(1_281_167, 224, lambda: ((0.5,) * 3, (0.25,) * 3), gpus=0, cpus=1, bfloat16=False)
    flags = {"data.path": "none", "backbone.name": "vit_tiny_patch16_224", "train.batch_size": IMAGES}
    flags |= {"train.precision": "32-true"} | TECHNIQUES[technique]
    config, _ = resolve_config(load_config(flags=flags), facts)
    torch.manual_seed(0)
    method = build_method(config)
    batch = ReadyViews([torch.randn(view.count * IMAGES, 3, view.size, view.size) for view in method.views().views])
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
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in TECHNIQUES}
    for _ in range(rounds):
        for name, measured in found.items():
            measured.append(cost(name))
            gc.collect()
    middle = {name: [statistics.median(each) for each in zip(*rows, strict=True)] for name, rows in found.items()}
    print(f"A step of DINO, ViT-Ti/16, {IMAGES} images, fp32, one thread; medians of {rounds} rounds")
    for name, (seconds, memory) in middle.items():
        ratios = [mine / plain for mine, plain in zip((seconds, memory), middle["plain"], strict=True)]
        print(
            f"{name:10} {seconds:6.2f} s  {memory:5.2f} GB   x {ratios[0]:.3f} of the time, x {ratios[1]:.3f} of memory"
        )
    adamw, adafactor = states()
    print(
        f"ViT-G/14's states: AdamW {adamw / 1e9:.2f} GB, Adafactor {adafactor / 1e9:.2f} GB: x {adafactor / adamw:.3f}"
    )


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
        "data.workers": 0,
        "health.every": 1000,
    }
    pretrain(str(folder / "train"), run, settings | TECHNIQUES[technique])
    sides = {"train": str(folder / "train"), "val": str(folder / "val")}
    knn = evaluate("knn", run, **sides, k=(20,))["knn"]
    job = Job(run, {})
    alike = patch_cosines(job.backbone, first_images(job, open_source(sides["val"])))
    drawn = figures is not None and seed == SEEDS[0]
    sharp = evaluate("sharpness", run, data=sides["train"], images=BATCH, iterations=10, places=9 if drawn else 3)
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

    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["costs", "learning"])
    parser.add_argument("where", nargs="?")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", type=Path, default=Path("techniques.json"))
    parser.add_argument("--figures", type=Path, default=Path())
    args = parser.parse_args()
    if args.what == "costs":
        costs(args.rounds)
    else:
        learning(Path(args.where), args.json, args.figures)


if __name__ == "__main__":
    main()
