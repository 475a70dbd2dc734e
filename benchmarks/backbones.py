"""Our backbone families against their official code: speed of forward and backward, and peak memory.

    python benchmarks/backbones.py --official DIR [FAMILY …]

DIR holds checkouts of the official repositories, each in a folder OWNER+NAME; a family whose checkout is missing, or
that has no official code, runs against timm's nearest model. Each family is measured in a process of its own, on one
thread, both models in alternation. Prints a row a family: medians of images per CPU-second, and peak memory. A ratio
above 1 says that ours is faster, or takes less.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import logging
import multiprocessing
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple
from unittest.mock import MagicMock

import timm
import timm.layers
import torch
from timm.models import model_entrypoint, vision_transformer
from torch import nn

from ssl_vit.backbones import list_backbones

IMAGES, ROUNDS = 2, 5


class Official(NamedTuple):
    """Where an official model is."""

    folder: str  # in the folder of checkouts, to be put on the path
    module: str
    call: str  # an expression over the module's names


class Rival(NamedTuple):
    """What one of ours is held against."""

    ours: str
    timm: str  # the nearest model in layout and multiply-adds, for want of official code
    official: Official | None = None


FOCAL = """FocalTransformer(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], focal_pool="fc",
    focal_stages=[0, 1, 2, 3], focal_levels=[2] * 4, focal_windows=[7, 5, 3, 1], expand_stages=[0, 1, 2, 3],
    expand_sizes=[3] * 4, expand_layer="all", use_shift=False)"""
SHUFFLE = "ShuffleTransformer(embed_dim=96, layers=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], qkv_bias=True)"
CAT = "CAT(embed_dim=64, depths=[1, 1, 3, 1], num_heads=[2, 4, 8, 16], patch_size=7, ape=True)"
REFINER = "Refiner_ViT_S(return_dense=False, mix_token=False)"
DYNAMIC = """VisionTransformerDiffPruning(embed_dim=384, num_heads=6, pruning_loc=[3, 6, 9],
    token_ratio=[0.7, 0.49, 0.343], norm_layer=functools.partial(nn.LayerNorm, eps=1e-6))"""
GFNET = "GFNet(embed_dim=256, depth=12, norm_layer=functools.partial(nn.LayerNorm, eps=1e-6))"
VIT_C = """ViT({"image_size": 224, "patch_size": 16, "stem_type": "conv", "c_stem_kernels": [3] * 4,
    "c_stem_strides": [2] * 4, "c_stem_dims": [24, 48, 96, 192], "n_layers": 11, "n_heads": 3, "hidden_d": 192,
    "mlp_d": 576, "cls_type": "token", "num_classes": 1000})"""
RIVALS = {
    "as_mlp": Rival("asmlp_tiny", "resmlp_24_224", Official("svip-lab+AS-MLP", "models.as_mlp", "AS_MLP()")),
    "augvit": Rival(
        "augvit_small_circulant2",
        "deit_small_patch16_224",
        Official("huawei-noah+Efficient-AI-Backbones/augvit_pytorch", "models.augvit", "augvit_small_circulant2()"),
    ),
    "cat": Rival("cat_tiny", "pvt_v2_b2", Official("linhezheng19+CAT/src", "cat", CAT)),
    "cmt": Rival("cmt_ti", "pvt_v2_b0", Official("ggjy+CMT.pytorch", "cmt", "cmt_ti(img_size=160)")),
    "cotnet": Rival("cotnet50", "resnet50"),  # the official code needs a GPU
    "cswin": Rival(
        "cswin_tiny_224",
        "swin_tiny_patch4_window7_224",
        Official("microsoft+CSWin-Transformer", "models.cswin", "CSWin_64_12211_tiny_224()"),
    ),
    "cyclemlp": Rival("cyclemlp_b1", "pvt_v2_b1", Official("ShoufaChen+CycleMLP", "cycle_mlp", "CycleMLP_B1()")),
    "dvt": Rival(
        "dvt_t2t_vit_12",
        "deit_small_patch16_224",
        Official("blackfeather-wang+Dynamic-Vision-Transformer", "models.t2t_vit", "DVT_T2t_vit_12_model()"),
    ),
    "dynamicvit": Rival(
        "dynamicvit_deit_small_patch16_224",
        "deit_small_patch16_224",
        Official("raoyongming+DynamicViT", "models.dyvit", DYNAMIC),
    ),
    "focal": Rival(
        "focal_tiny_patch4_window7_224",
        "swin_tiny_patch4_window7_224",
        Official("microsoft+Focal-Transformer/classification", "focal_transformer", FOCAL),
    ),
    "gfnet": Rival("gfnet_ti", "deit_tiny_patch16_224", Official("raoyongming+GFNet", "gfnet", GFNET)),
    "glit": Rival(
        "glit_tiny_patch16_224",
        "deit_tiny_patch16_224",
        Official("bychen515+GLiT", "glit_models", "glit_tiny_patch16_224()"),
    ),
    "hat_net": Rival("hat_net_tiny", "pvt_v2_b1", Official("yun-liu+HAT-Net", "HAT_Net", "HAT_Net_tiny()")),
    "lg_transformer": Rival("lg_transformer_tiny", "swin_tiny_patch4_window7_224"),
    "linmapper": Rival("linmapper_tiny", "swin_tiny_patch4_window7_224"),
    "multi_stream": Rival("multi_stream_vit_tiny_patch16_224", "vit_tiny_patch16_224"),
    "p2t": Rival("p2t_tiny", "pvt_v2_b1", Official("yuhuan-wu+P2T", "p2t", "p2t_tiny()")),
    "pgt": Rival("pgt_tiny", "pvt_v2_b1"),
    "pvt": Rival("pvt_tiny", "pvt_v2_b1", Official("whai362+PVT/classification", "pvt", "pvt_tiny()")),
    "rams_trans": Rival("rams_trans_base_patch32_448", "vit_base_patch16_224"),
    "refiner": Rival(
        "refiner_vit_s",
        "volo_d1_224",
        Official("zhoudaquan+Refiner_ViT", "models.refined_transformer", REFINER),
    ),
    "regionvit": Rival(
        "regionvit_tiny_224", "pvt_v2_b1", Official("IBM+RegionViT", "regionvit.regionvit", "regionvit_tiny_224()")
    ),
    "rest": Rival("rest_lite", "pvt_v2_b1", Official("wofmanaf+ResT", "models.rest", "rest_lite()")),
    "s2_mlp": Rival("s2mlp_deep", "resmlp_24_224"),
    "shuffle": Rival(
        "shuffle_vit_tiny_patch4_window7_224",
        "swin_tiny_patch4_window7_224",
        Official("mulinmeng+Shuffle-Transformer", "models.shuffle_transformer", SHUFFLE),
    ),
    "t2t_vit": Rival(
        "t2t_vit_7", "deit_tiny_patch16_224", Official("yitu-opensource+T2T-ViT", "models.t2t_vit", "t2t_vit_7()")
    ),
    "vip": Rival("vip_s7", "resmlp_24_224", Official("houqb+VisionPermutator", "models.vip", "vip_s7()")),
    "vision_xformer": Rival("vit_tiny_nystrom_patch16_224", "vit_tiny_patch16_224"),
    "vit_early_conv": Rival(
        "vit_c_1gf", "vit_tiny_patch16_224", Official("facebookresearch+pycls", "pycls.models.vit", VIT_C)
    ),
}


def makers(rival: Rival, checkouts: Path | None) -> tuple[str, dict[str, Callable[[], nn.Module]]]:
    """What ours is held against, and how both are built."""
    ours = model_entrypoint(rival.ours)  # at once: official code puts models of its own under the same names
    if checkouts is None or rival.official is None or not (checkouts / rival.official.folder).exists():
        return f"timm {rival.timm}", {"ours": ours, "theirs": model_entrypoint(rival.timm)}
    folder, module, call = rival.official
    sys.path.insert(0, str(checkouts / folder))
    as_it_was()
    names = vars(importlib.import_module(module)) | {"functools": functools, "nn": nn}
    if "torch_shift" in vars(sys.modules.get("models.shift_cuda", sys)):
        vars(sys.modules[module])["Shift"] = ShiftOnCPU
    return f"official {folder.partition('/')[0]}", {"ours": ours, "theirs": lambda: eval(call, names)}  # of RIVALS


class ShiftOnCPU(nn.Module):
    """AS-MLP's own shift without its CUDA kernel, which its code has beside it."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.size, self.dim = size, dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, D, H, W] -> [B, D, H, W]."""
        shifted: torch.Tensor = vars(sys.modules["models.shift_cuda"])["torch_shift"](x, self.size, self.dim)
        return shifted


def as_it_was() -> None:
    """Names that code of 2021 imports, and which have moved since or need a GPU."""
    sys.modules.setdefault("cupy", MagicMock(ndarray=MagicMock))
    for name in ("HybridEmbed", "_cfg"):
        vars(vision_transformer).setdefault(name, getattr(timm.layers, name, dict))
    sys.modules.setdefault("numpy.lib.arraypad", MagicMock())


def step(model: nn.Module, images: torch.Tensor) -> None:
    """One forward and backward; of several outputs (official code of DVT and DynamicViT) the last or the first."""
    model.zero_grad(set_to_none=True)
    found = model(images)
    while isinstance(found, list | tuple):
        found = found[-1] if isinstance(found, list) else found[0]
    found.square().mean().backward()


def pixels(name: str) -> torch.Tensor:
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    return torch.randn(IMAGES, *config.input_size)


def peak(make: Callable[[], nn.Module], images: torch.Tensor, answer: multiprocessing.SimpleQueue) -> None:
    """MB that building a model and one step take at most, beyond what the process had."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(make().train(), images)
    answer.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def measure(family: str, checkouts: Path | None) -> str:
    """A row of the table."""
    warnings.filterwarnings("ignore")
    logging.getLogger("timm").setLevel(logging.ERROR)  # official code registers names of ours, without settings
    torch.set_num_threads(1)
    rival = RIVALS[family]
    list_backbones(rival.ours)  # registers our families
    images = {"ours": pixels(rival.ours), "theirs": pixels(rival.timm)}
    with redirect_stdout(StringIO()):  # official code prints
        against, make = makers(rival, checkouts)
        if against.startswith("official"):
            images["theirs"] = images["ours"]
        fork, memory = multiprocessing.get_context("fork"), {}
        for side in make:
            answer = fork.SimpleQueue()
            child = fork.Process(target=peak, args=(make[side], images[side], answer))
            child.start()
            child.join()
            if child.exitcode:
                sys.exit(f"{family}: {side} can't run a step of training")
            memory[side] = answer.get()
        models = {side: make[side]().train() for side in make}
        seconds: dict[str, list[float]] = {side: [] for side in make}
        for _ in range(ROUNDS + 1):
            for side, model in models.items():
                start = time.process_time()
                step(model, images[side])
                seconds[side].append(time.process_time() - start)
    rate = {side: IMAGES / statistics.median(spent[1:]) for side, spent in seconds.items()}
    return (
        f"| {rival.ours} | {against} | {rate['ours']:.2f} | {rate['theirs']:.2f} | {rate['ours'] / rate['theirs']:.2f} "
        f"| {memory['ours']:.0f} | {memory['theirs']:.0f} | {memory['theirs'] / memory['ours']:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", choices=[*RIVALS, []], metavar="FAMILY")
    parser.add_argument("--official", type=Path, metavar="DIR", help="the folder of checkouts")
    parser.add_argument("--row", choices=RIVALS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(measure(args.row, args.official and args.official.resolve()))
        return
    print(f"{IMAGES} images, one thread, {ROUNDS} rounds, fp32; torch {torch.__version__}, {platform.processor()}\n")
    print("| ours | against | ours, images/cpu-s | theirs | ratio | ours, peak MB | theirs | ratio |")
    print("|---|---|---:|---:|---:|---:|---:|---:|", flush=True)
    failed = False
    for family in args.families or RIVALS:
        options = ["--official", str(args.official)] if args.official else []
        failed |= subprocess.run([sys.executable, __file__, "--row", family, *options]).returncode != 0
    sys.exit(failed)


if __name__ == "__main__":
    main()
