"""Which of our models is which official one, by rules on the official name.

A rule of a case is a pattern for whole names of variants, and our name in timm's registry, or what builds an official
model that differs from our default (no classifier, another window). What a rule names must be registered, so that a
variant that nobody published is not taken for another.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any
from unittest import mock

import timm
import torch
from torch import Tensor, nn

from ssl_vit.backbones import families
from ssl_vit.backbones.families import dvt, s2_mlp
from ssl_vit.backbones.mixing import shift_quarters
from ssl_vit.methods.heads import DINOHead
from ssl_vit.tokenizers import dalle
from tests.golden import autoformer, beit, detectors, moby

Builder = Callable[[], nn.Module]
Found = re.Match[str]
Rule = tuple[str, str | Callable[[Found], str | Builder]]

SIZES = {"t": "tiny", "s": "small", "b": "base", "l": "large"}
MOBYS = {"deit": "deit_{}_patch16_224", "vit": "vit_{}_patch16_224", "swin": "swin_{}_patch4_window7_224"}


def _features(name: str, **options: Any) -> Builder:
    """A model of timm's registry without its classifier."""
    return partial(timm.create_model, name, num_classes=0, **options)


def _xformer(found: Found) -> Builder:
    """A network of the size that the authors train on CIFAR-10."""
    small: dict[str, Any] = {"img_size": 32, "embed_dim": 128, "depth": 4, "mlp_ratio": 2.0, "num_classes": 10}
    hybrid = {"patch_size": 1, "hybrid": True} if found["hybrid"] else {"patch_size": 4}
    return partial(timm.create_model, f"vit_tiny_{found['kind'].lower()}_patch16_224", **small, **hybrid)


def _esvit(found: Found) -> Builder:
    size, window, pixels = found.groups()
    return _features(f"swin_{size}_patch4_window7_224", window_size=int(window), img_size=int(pixels))


def _pretrained_beit(found: Found) -> Builder:
    """The published networks for pretraining share one table of relative positions; an analysis has absolute ones."""
    return partial(beit.Network, f"beit_{found['size']}_patch16_224", absolute="abspos" in found[0])


def _yolos(found: Found) -> Builder:
    if found[1] not in detectors.YOLOS:
        raise KeyError(f"we have no variant {found[0]!r} of yolos; we have {', '.join(detectors.YOLOS)}")
    return partial(detectors.yolos, found[1])


def _dynamic(kind: str) -> Callable[[Found], Builder]:
    """With the share of patches that is kept at each stage, which is part of the official name."""

    def build(found: Found) -> Builder:
        size = {**SIZES, "m": "medium", "256": "256"}[found[1]]
        return partial(timm.create_model, f"dynamicvit_{kind}_{size}_patch16_224", keep_ratio=int(found[2]) / 10)

    return build


def _coarse(found: Found) -> Builder:
    """A network of a DVT by itself."""
    window = dvt.WINDOWS[0 if found[2] == "less_less" else 1]
    return partial(timm.create_model, f"t2t_vit_{found[1]}", window=window)


def _first_exit(model: nn.Module, images: Tensor) -> Tensor:
    """The official DVT gives the logits of all of its networks."""
    logits: Tensor = model.exits(images)[0] if isinstance(model, dvt.DVT) else model(images)
    return logits


RULES: dict[str, tuple[Rule, ...]] = {
    "asmlp": ((r"asmlp_\w+", r"\g<0>"),),
    "augvit": ((r"augvit_\w+", r"\g<0>"),),
    "autoformer": ((r"autoformer_super_([TSB])", lambda m: partial(autoformer.Supernet, m[1])),),
    "beit": (
        (r"finetune_(beit_\w+_patch16_\d+)", r"\1"),
        (r"pretrain_(?:beit_)?(?P<size>base|large)(?:_patch16_224_8k_vocab|_abspos)", _pretrained_beit),
    ),
    "cait": (
        (r"cait_\w+_\d{3}", r"\g<0>"),
        (r"cait_(?:M48|m48)", r"\g<0>_448"),
        (r"cait_[A-Za-z]+\d\d", r"\g<0>_384"),
    ),
    "cat": ((r"cat_\w+", r"\g<0>"),),
    "cmt": ((r"cmt_\w+", r"\g<0>"),),
    "cotnet": ((r"\w+", r"\g<0>"),),
    "cswin": ((r"CSWin_\d+_\d+_([a-z]+_\d+)", r"cswin_\1"),),
    "cyclemlp": ((r"CycleMLP_B\d", r"\g<0>"),),
    "dalle": (
        ("dalle_encoder", lambda _: dalle.DalleEncoder),
        ("dalle_decoder", lambda _: dalle.DalleDecoder),
    ),
    "detr": ((r"detr_(resnet\d+)(_dc5)?", lambda m: partial(detectors.detr, m[1], dilated=m[2] is not None)),),
    "detreg": (
        (r"detreg_pretrain_\w+", lambda _: partial(detectors.deformable, 512)),
        (r"defdetr_finetune_\w+", lambda _: partial(detectors.deformable, None)),
    ),
    "dino": (
        (r"vit_([a-z]+)_p(\d+)", lambda m: _features(f"vit_{m[1]}_patch16_224", patch_size=int(m[2]))),
        (r"(xcit_\w+_p\d+)", lambda m: _features(f"{m[1]}_224")),
        (r"resnet\d+", lambda m: _features(m[0])),
        (r"DINOHead_(\d+)_(\d+)", lambda m: partial(DINOHead, int(m[1]), int(m[2]))),
    ),
    "dvt": (
        (r"DVT_T2t_vit_(\d+)_model", r"dvt_t2t_vit_\1"),
        (r"T2t_vit_(\d+)_noreuse", r"t2t_vit_\1"),
        (r"T2t_vit_(\d+)_(less(?:_less)?)_token_noreuse", _coarse),
    ),
    "dvt_exit3": ((r"DVT_T2t_vit_(\d+)_model_lastexit", r"dvt_t2t_vit_\1"),),
    "dynamicvit": (
        (r"dyvit_deit_(256|[sb])_0\.(\d)", _dynamic("deit")),
        (r"dyvit_lvvit_([sm])_0\.(\d)", _dynamic("lvvit")),
    ),
    "esvit": ((r"swin_([a-z]+)_patch4_window(\d+)_(\d+)", _esvit),),
    "focal": (
        (r"(focal(?:v2)?_[a-z]+)_conv", r"\1_useconv_patch4_window7_224"),
        (r"focal(?:v2)?_[a-z]+", r"\g<0>_patch4_window7_224"),
    ),
    "glit": ((r"glit_\w+", r"\g<0>"),),
    "gfnet": ((r"gfnet_\w+", r"\g<0>"),),
    "hatnet": ((r"HAT_Net_\w+", r"\g<0>"),),
    "moby": (
        (r"MoBYMLP_(\d+)", lambda m: partial(moby.Head, int(m[1]))),
        (r"moby_full_(deit|vit|swin)_([a-z]+)", lambda m: partial(moby.Network, MOBYS[m[1]].format(m[2]))),
    ),
    "p2t": ((r"p2t_\w+", r"\g<0>"),),
    "pvt": ((r"pvt_[a-z]+", r"\g<0>"),),
    "pvtv2": ((r"pvt_v2_\w+", r"\g<0>"),),
    "rams": ((r"rams_b\d+_ps(\d+)_(\d+)", r"rams_trans_base_patch\1_\2"),),
    "refiner": ((r"Refiner_ViT_\w+", r"\g<0>"),),
    "regionvit": ((r"regionvit_\w+", r"\g<0>"),),
    "resmlp": ((r"resmlp_(\d+)", r"resmlp_\1_224"), (r"resmlpB_(\d+)", r"resmlp_big_\1_224")),
    "rest": ((r"rest_\w+", r"\g<0>"),),
    "s2mlp": ((r"s2mlp_\w+", r"\g<0>"),),
    "shuffle": ((r"shuffle_([a-z]+)", r"shuffle_vit_\1_patch4_window7_224"),),
    "swin": ((r"swin_([tsbl])", lambda m: f"swin_{SIZES[m[1]]}_patch4_window7_224"),),
    "t2t": ((r"t2t_vit_\w+", r"\g<0>"),),
    "timm": ((r"\w+", r"\g<0>"),),
    "transcnn": ((r"TransCNN_\w+", r"\g<0>"),),
    "vip": ((r"vip_[sml]\d+", r"\g<0>"),),
    "vision_xformers": ((r"(?P<hybrid>Hybrid)?(?P<kind>FNet|Linformer|Performer|Nystrom)", _xformer),),
    "vitc": ((r"ViT_[CP]_\d+GF", r"\g<0>"),),
    "volo": ((r"volo_d\d", r"\g<0>_224"), (r"volo_d\d_\d{3}", r"\g<0>")),
    "xcit": ((r"xcit_\w+_p\d+", r"\g<0>_224"), (r"xcit_\w+_p\d+_\d{3}", r"\g<0>")),
    "yolos": ((r"yolos_(\w+)", _yolos),),
}


def _pooled(model: nn.Module, images: Tensor) -> Tensor:
    pooled: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)  # type: ignore[operator]  # of timm, untyped
    return pooled


def _overwriting(model: nn.Module, images: Tensor) -> Tensor:
    """The public S²-MLP shifts in place: down and right, a place is written over before the next one reads it.

    So the first is everywhere, which the paper doesn't mean; all else is held to that code.
    """

    def shift(x: Tensor) -> Tensor:
        down, up, right, left = shift_quarters(x).chunk(4, dim=-1)
        down, right = down[:, :1].expand_as(down), right[:, :, :1].expand_as(right)
        return torch.cat([down, up, right, left], dim=-1)

    with mock.patch.object(s2_mlp, "shift_quarters", shift):
        output: Tensor = model(images)
        return output


# What a golden holds of models whose official forward gives something else than ours does: case -> our counterpart.
OUTPUTS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "dvt": _first_exit,
    "rams": _pooled,
    "s2mlp": _overwriting,
    "detr": detectors.logits,
    "detreg": detectors.first_logits,
}


@cache
def _register_families() -> None:
    for module in pkgutil.iter_modules(families.__path__, families.__name__ + "."):
        importlib.import_module(module.name)


def entry_of(case: str, variant: str) -> str | Builder:
    """Our name of an official model, or what builds it; KeyError with a plain line when there's none."""
    if case not in RULES:
        raise KeyError(f"we have no model for case {case!r}; tests/golden/names.py knows {', '.join(sorted(RULES))}")
    _register_families()
    for pattern, ours in RULES[case]:
        if (found := re.fullmatch(pattern, variant)) is not None:
            entry = found.expand(ours).lower() if isinstance(ours, str) else ours(found)
            if not isinstance(entry, str) or timm.is_model(entry):
                return entry
            raise KeyError(f"we have no variant {variant!r} of {case}; there is no backbone {entry}")
    raise KeyError(f"we have no variant {variant!r} of {case}; we have what matches {RULES[case][0][0]}")


def name_of(case: str, variant: str) -> str | None:
    """Our name in timm's registry of an official model; None where we have none, or none by a name alone."""
    try:
        entry = entry_of(case, variant)
    except KeyError:
        return None
    return entry if isinstance(entry, str) else None


def model_of(case: str, variant: str) -> nn.Module:
    """Our counterpart of an official model, with random weights; KeyError with a plain line when there's none."""
    entry = entry_of(case, variant)
    model: nn.Module = timm.create_model(entry) if isinstance(entry, str) else entry()
    return model
