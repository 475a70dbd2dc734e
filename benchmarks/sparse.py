"""What mixtures of experts, dropped patches and early exits cost against their dense twins: measured seconds.

    python benchmarks/sparse.py

A step of training (forward and backward) of V-MoE and WideNet against the same network whose mixtures are MLPs of as
many active multiply-adds; inference of DynamicViT at keep 0.7 against the plain ViT, and of DVT where a third of the
images leaves at each exit against all of them taking the last, and against the T2T-ViT that its last network is, at
batches of 1 and 32. Both take turns on one thread; ratios are twin over ours in CPU-seconds, above 1 where ours is
faster.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import timm
import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from ssl_vit.backbones import list_backbones
from ssl_vit.backbones.adaptive import thresholds_of
from ssl_vit.backbones.experts import Mixture
from ssl_vit.eval.budget import gmacs
from ssl_vit.process import keep_memory

ROUNDS = 3
MIXTURES: Sequence[tuple[str, int, dict[str, Any]]] = (  # images, arguments
    ("vmoe_small_patch32_last2_e8_224", 8, {}),
    ("vmoe_small_patch32_every2_e32_224", 8, {}),
    ("vmoe_small_patch32_every2_e32_224", 32, {}),
    ("vmoe_base_patch16_every2_e8_224", 2, {"depth": 4, "layers": (1, 3)}),
    ("widenet_base_patch16_224", 2, {"depth": 4}),
)


def dense_twin(model: nn.Module) -> nn.Module:
    """The same network, each mixture an MLP as wide as the experts together that a token sees; in place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Mixture):
                width = child.fc1.weight.shape[2]
                setattr(module, name, Mlp(width, child.chosen * child.fc1.weight.shape[1], width))
    return model


def in_turn(runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median CPU-seconds of each, the first round not counted."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            spent[name].append(time.process_time() - start)
    return {name: statistics.median(each[1:]) for name, each in spent.items()}


def training(model: nn.Module, images: Tensor) -> Callable[[], object]:
    def run() -> None:
        model.zero_grad(set_to_none=True)
        model(images).square().mean().backward()

    return run


def mixture_row(name: str, count: int, args: Mapping[str, Any]) -> str:
    model, twin = timm.create_model(name, **args).train(), dense_twin(timm.create_model(name, **args)).train()
    images = torch.randn(count, *model.pretrained_cfg["input_size"])
    work = {"ours": gmacs(model, images) / count, "twin": gmacs(twin, images) / count}
    spent = in_turn({"ours": training(model, images), "twin": training(twin, images)})
    ratio = spent["twin"] / spent["ours"]
    said = f"{name}, training | dense, {work['twin']:.2f} GMACs against {work['ours']:.2f} | {count}"
    return f"| {said} | {1000 * spent['ours'] / count:.0f} | {1000 * spent['twin'] / count:.0f} | {ratio:.2f} |"


Model = Callable[[Tensor], object]


def one_by_one(model: Model, parts: Sequence[Tensor]) -> None:
    for part in parts:
        model(part)


def inference_rows(title: str, ours: Model, twins: Mapping[str, Model]) -> None:
    images = torch.randn(32, 3, 224, 224)
    with torch.inference_mode():
        for batch in (1, 32):
            parts = images.split(batch)
            runs = {name: partial(one_by_one, model, parts) for name, model in {"ours": ours, **twins}.items()}
            spent = {name: 1000 * seconds / 32 for name, seconds in in_turn(runs).items()}
            for name in twins:
                both = f"{spent['ours']:.0f} | {spent[name]:.0f} | {spent[name] / spent['ours']:.2f}"
                print(f"| {title} | {name} | {batch} | {both} |", flush=True)


def cascade() -> tuple[Model, Model]:
    """DVT where a third leaves at each exit, by random weights' confidence, and where all take the last."""
    model: Any = timm.create_model("dvt_t2t_vit_12").eval()
    with torch.inference_mode():
        sure = torch.stack([logits.softmax(-1).amax(-1) for logits in model.exits(torch.randn(96, 3, 224, 224))[:-1]])
    least = thresholds_of(sure, (1.0, 1.0, 1.0))
    return lambda x: model.answer(x, least), lambda x: model.answer(x, (1.1, 1.1))


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_memory()  # as runs do: else each step fetches all gradients' memory anew
    list_backbones("cat_tiny")  # registers our families
    print(f"one thread, {ROUNDS} rounds in turn, fp32; torch {torch.__version__}, {platform.machine()}\n")
    print("| ours | twin | batch | ours, CPU-ms an image | twin | ratio |")
    print("|---|---|---:|---:|---:|---:|", flush=True)
    for name, count, args in MIXTURES:
        print(mixture_row(name, count, args), flush=True)
    dynamic = timm.create_model("dynamicvit_deit_256_patch16_224", keep_ratio=0.7).eval()
    twin = timm.create_model("deit_small_patch16_224", embed_dim=256, num_heads=4).eval()
    inference_rows("dynamicvit_deit_256_patch16_224, keep 0.7", dynamic, {"deit, as wide": twin})
    some, everything = cascade()
    twins = {"itself, all exits for all": everything, "t2t_vit_12": timm.create_model("t2t_vit_12").eval()}
    inference_rows("dvt_t2t_vit_12, a third leaves at each exit", some, twins)


if __name__ == "__main__":
    main()
