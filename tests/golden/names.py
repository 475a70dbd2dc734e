"""Which of our models is which official one: case -> official variant -> our name in timm's registry.

An official build that differs from our default (no classifier, another window) has a builder in place of the name.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import timm
from torch import Tensor, nn

from ssl_vit.backbones import families
from ssl_vit.methods.heads import DINOHead
from ssl_vit.tokenizers import dalle
from tests.golden import beit, detectors, moby

Entry = str | Callable[[], nn.Module]


def _features(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A model of timm's registry without its classifier."""
    return partial(timm.create_model, name, num_classes=0, **options)


def _fnet(**options: Any) -> Callable[[], nn.Module]:
    """An FNet of the size that the authors train on CIFAR-10."""
    small = {"img_size": 32, "embed_dim": 128, "depth": 4, "mlp_ratio": 2.0, "num_classes": 10}
    return lambda: timm.create_model("vit_tiny_fnet_patch16_224", **small, **options)


NAMES: dict[str, dict[str, Entry]] = {
    "augvit": {
        f"augvit_{kind}": f"augvit_{kind}"
        for kind in ("small", "small_linear", "small_linear2", "small_circulant2", "base_circulant2")
    },
    "beit": {
        **{f"finetune_beit_{size}_patch16_224": f"beit_{size}_patch16_224" for size in ("base", "large")},
        **{
            f"pretrain_beit_{size}_patch16_224_8k_vocab": partial(beit.Network, f"beit_{size}_patch16_224")
            for size in ("base", "large")
        },
    },
    "cait": {"cait_XXS24_224": "cait_xxs24_224", "cait_S24_224": "cait_s24_224"},
    "cat": {name: name for name in ("cat_tiny", "cat_small", "cat_base")},
    "cswin": {
        "CSWin_64_12211_tiny_224": "cswin_tiny_224",
        "CSWin_64_24322_small_224": "cswin_small_224",
        "CSWin_96_24322_base_224": "cswin_base_224",
        "CSWin_144_24322_large_224": "cswin_large_224",
        "CSWin_96_24322_base_384": "cswin_base_384",
        "CSWin_144_24322_large_384": "cswin_large_384",
    },
    "cmt": {name: name for name in ("cmt_ti", "cmt_xs", "cmt_s", "cmt_b")},
    "cotnet": {
        name: name
        for name in (
            *("cotnet50", "cotnet101", "cotnext50_2x48d", "cotnext101_2x48d"),
            *(f"se_cotnetd_{depth}" for depth in (50, 101, 152)),
        )
    },
    "dalle": {"dalle_encoder": dalle.DalleEncoder, "dalle_decoder": dalle.DalleDecoder},
    "detr": {"detr_resnet50": detectors.detr},
    "detreg": {
        "detreg_pretrain_defdetr": partial(detectors.deformable, 512),
        "defdetr_finetune_coco": partial(detectors.deformable, None),
    },
    "dino": {
        **{
            f"vit_{size}_p{patch}": _features(f"vit_{size}_patch{patch}_224")
            for size, patch in (("tiny", 16), ("small", 16), ("small", 8), ("base", 16), ("base", 8))
        },
        **{f"DINOHead_{dim}_65536": partial(DINOHead, dim) for dim in (384, 768, 2048)},
    },
    "esvit": {
        f"swin_{size}_patch4_window{window}_224": _features(f"swin_{size}_patch4_window7_224", window_size=window)
        for size in ("tiny", "small", "base")
        for window in (7, 14)
    },
    "focal": {
        f"{version}_{size}{suffix}": f"{version}_{size}{kind}_patch4_window7_224"
        for size in ("tiny", "small", "base")
        for version, suffix, kind in (
            ("focal", "", ""),
            ("focal", "_conv", "_useconv"),
            ("focalv2", "_conv", "_useconv"),
        )
    },
    "hatnet": {f"HAT_Net_{size}": f"hat_net_{size}" for size in ("tiny", "small", "medium", "large")},
    "moby": {
        "MoBYMLP_256": moby.Head,
        "moby_full_deit_small": partial(moby.Network, "deit_small_patch16_224"),
        "moby_full_swin_tiny": partial(moby.Network, "swin_tiny_patch4_window7_224"),
    },
    "p2t": {name: name for name in ("p2t_tiny", "p2t_small", "p2t_base", "p2t_medium", "p2t_large")},
    "pvt": {name: name for name in ("pvt_tiny", "pvt_small", "pvt_medium", "pvt_large")},
    "pvtv2": {name: name for name in [*(f"pvt_v2_b{i}" for i in range(6)), "pvt_v2_b2_li"]},
    "rams": {"rams_b16_ps32_448": "rams_trans_base_patch32_448"},
    "refiner": {f"Refiner_ViT_{size}": f"refiner_vit_{size.lower()}" for size in "SML"},
    "resmlp": {
        "resmlp_12": "resmlp_12_224",
        "resmlp_24": "resmlp_24_224",
        "resmlp_36": "resmlp_36_224",
        "resmlpB_24": "resmlp_big_24_224",
    },
    "regionvit": {
        f"regionvit_{variant}_224": f"regionvit_{variant}_224"
        for variant in (
            *("tiny", "small", "medium", "base"),
            *("small_w14", "small_w14_peg", "base_w14", "base_w14_peg"),
        )
    },
    "shuffle": {f"shuffle_{size}": f"shuffle_vit_{size}_patch4_window7_224" for size in ("tiny", "small", "base")},
    "rest": {name: name for name in ("rest_lite", "rest_small", "rest_base", "rest_large")},
    "swin": {f"swin_{size[0]}": f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base")},
    "t2t": {
        f"t2t_vit_{size}": f"t2t_vit_{size}"
        for size in (7, 10, 12, 14, 19, 24, "t_14", "t_19", "t_24", "14_resnext", "14_wide")
    },
    "timm": {
        name: name
        for name in (
            *(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")),
            *("vit_base_patch32_224", "vit_large_patch32_224", "vit_huge_patch14_224"),
            *(f"deit_{size}{kind}_patch16_224" for size in ("tiny", "small", "base") for kind in ("", "_distilled")),
            *(f"mixer_{size}{patch}_224" for size in "sbl" for patch in (32, 16)),
            *(f"coatnet_{i}_224" for i in range(6)),
            *(f"gmlp_{size}16_224" for size in ("ti", "s", "b")),
        )
    },
    "transcnn": {f"TransCNN_{size.title()}": f"transcnn_{size}" for size in ("tiny", "small", "medium", "large")},
    "vision_xformers": {"FNet": _fnet(patch_size=4), "HybridFNet": _fnet(patch_size=1, hybrid=True)},
    "vitc": {f"ViT_{kind}_{size}GF": f"vit_{kind.lower()}_{size}gf" for kind in "CP" for size in (1, 4, 18, 36)},
    "volo": {f"volo_d{i}": f"volo_d{i}_224" for i in range(1, 6)},
    "xcit": {
        f"xcit_{size}_p{patch}": f"xcit_{size}_p{patch}_224"
        for size in ("nano_12", "tiny_12", "tiny_24", "small_12", "small_24", "medium_24", "large_24")
        for patch in (16, 8)
    },
    "yolos": {f"yolos_{size}": partial(detectors.yolos, size) for size in detectors.YOLOS},
}


def _pooled(model: nn.Module, images: Tensor) -> Tensor:
    pooled: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)  # type: ignore[operator]  # of timm, untyped
    return pooled


# What a golden holds of models whose official forward gives something else than ours does: case -> our counterpart.
OUTPUTS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "rams": _pooled,
    "detr": detectors.logits,
    "detreg": detectors.first_logits,
}


@cache
def _register_families() -> None:
    for module in pkgutil.iter_modules(families.__path__, families.__name__ + "."):
        importlib.import_module(module.name)


def model_of(case: str, variant: str) -> nn.Module:
    """Our counterpart of an official model, with random weights; KeyError with a plain line when there's none."""
    if case not in NAMES:
        raise KeyError(f"we have no model for case {case!r}; tests/golden/names.py knows {', '.join(sorted(NAMES))}")
    if variant not in NAMES[case]:
        raise KeyError(f"we have no variant {variant!r} of {case}; we have {', '.join(NAMES[case])}")
    entry = NAMES[case][variant]
    _register_families()
    if callable(entry):
        return entry()
    model: nn.Module = timm.create_model(entry)
    return model
