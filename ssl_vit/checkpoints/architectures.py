"""Which published architecture weights under timm's names are of, by every one of their names and shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor

from ssl_vit.backbones.anatomy import Argument
from ssl_vit.backbones.layers import Size
from ssl_vit.checkpoints.colours import Colour

POSITIONS = re.compile(r"(?:^|\.)(?:pos_embed|relative_position_bias_table)$")  # may have another size than the model's
_WINDOW = re.compile(r"^layers\.(\d+)\.blocks\.0\.attn\.relative_position_bias_table$")
_OPTIONAL = re.compile(r"(?:^|\.)(?:norm\.\w+|fc_norm\.\w+|num_batches_tracked)$")

_VITS = (
    "vit_tiny_patch16_224 vit_small_patch16_224 vit_small_patch8_224 vit_small_patch32_224 vit_base_patch16_224 "
    "vit_base_patch8_224 vit_base_patch32_224 vit_large_patch16_224 vit_large_patch32_224 vit_huge_patch14_224"
)
_DINOV2 = [f"vit_{size}_patch14_dinov2" for size in ("small", "base", "large", "giant")]
_REGISTERED = [  # the smaller first, as each is built to be looked at
    "vit_small_patch14_reg4_dinov2",
    *(f"vit_{size}_patch14_{whose}" for size in ("base", "large") for whose in ("reg4_dinov2", "reg1_tipsv2")),
    *("vit_so400m_patch14_reg1_tipsv2", "vit_giant_patch14_reg4_dinov2", "vit_giant_patch14_reg1_tipsv2"),
]
_DINOV3 = [f"vit_{size}_patch16_dinov3" for size in ("small", "small_plus", "base", "large", "huge_plus", "7b")]
_XCITS = [
    f"xcit_{size}_p{patch}_224"
    for size in ("nano_12", "tiny_12", "tiny_24", "small_12", "small_24")
    for patch in (16, 8)
]
_XCITS += [f"xcit_{size}_24_p{patch}_224" for size in ("medium", "large") for patch in (16, 8)]

_PUBLISHED = (  # a name of a weight that only this kind has, and the names to try, the first kind that has it
    (r"^blocks\.0\.gamma_1$", " ".join(f"{name}_qkvb {name}" for name in ["vit_tiny_patch16_dinov3", *_DINOV3])),
    (r"^blocks\.0\.attn\.q_bias$", "beit_base_patch16_224 beit_large_patch16_224"),
    (r"^reg_token$", " ".join(_REGISTERED)),
    (r"^blocks\.0\.ls1\.gamma$", " ".join(_DINOV2)),
    (r"^blocks\.0\.attn\.temperature$", " ".join(_XCITS)),
    (r"^dist_token$", " ".join(f"deit_{size}_distilled_patch16_224" for size in ("tiny", "small", "base"))),
    (r"^blocks\.0\.attn\.qkv\.bias$", _VITS),
    (
        r"^layers\.0\.blocks\.0\.attn\.relative_position_bias_table$",
        "swin_tiny_patch4_window7_224 swin_small_patch4_window7_224 swin_base_patch4_window7_224 "
        "swin_large_patch4_window7_224",
    ),
    (r"^layer1\.0\.conv1\.weight$", "resnet18 resnet34 resnet50 resnet101 resnet152 wide_resnet50_2 resnext50_32x4d"),
    (r"^stages\.0\.blocks\.0\.conv_dw\.weight$", "convnext_tiny convnext_small convnext_base convnext_large"),
    (r"^stages\.0\.blocks\.0\.attn\.q\.weight$", "pvt_v2_b0 pvt_v2_b1 pvt_v2_b2 pvt_v2_b3 pvt_v2_b4 pvt_v2_b5"),
)
MARKS = tuple(mark for mark, _ in _PUBLISHED)
"""Patterns of a name that some kind of architecture has, from its beginning."""


class Architecture(NamedTuple):
    """An architecture is built by its name, with these arguments, for images of this size."""

    name: str  # as `ssl-vit list backbones` prints it
    model_args: dict[str, Argument]  # without the size
    size: Size | None  # height, width, pixels; None: as the name has it

    def __str__(self) -> str:
        given = [f"{key}={value}" for key, value in self.model_args.items()]
        if self.size is not None:
            given.append(f"image_size={self.size[0]}")
        return self.name + (f" with {', '.join(given)}" if given else "")


def architecture_of(state: Mapping[str, Tensor]) -> Architecture | None:
    """Find the published architecture whose weights these are, all of them and no others; None where none is."""
    for mark, names in _PUBLISHED:
        if any(re.search(mark, key) for key in state):
            name = next((name for name in names.split() if _is(name, state)), None)
            return None if name is None else _with_its_windows(name, state)
    return None


def _with_its_windows(name: str, state: Mapping[str, Tensor]) -> Architecture:
    """A Swin whose windows aren't those that its name says, as EsViT's of 14.

    Windows of w patches a side have a table of (2w - 1)² rows, and are no larger than a stage's map: the last map has
    a 32nd of the images' pixels a side.
    """
    rows = {int(match[1]): len(value) for key, value in state.items() if (match := _WINDOW.match(key))}
    sides = [(math.isqrt(rows[stage]) + 1) // 2 for stage in sorted(rows)]
    if not sides or set(sides) == {7} or [(2 * side - 1) ** 2 for side in sides] != [rows[i] for i in sorted(rows)]:
        return Architecture(name, {}, None)
    window, size = max(sides), 32 * sides[-1]
    own = name.replace("window7_224", f"window{window}_{size}")
    return (
        Architecture(own, {}, None) if timm.is_model(own) else Architecture(name, {"window_size": window}, (size, size))
    )


def timm_colours(name: str) -> tuple[Colour, Colour] | None:
    """The mean and deviation that timm has for an architecture; None for one that it doesn't know."""
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return None if config is None else (_colour(config.mean), _colour(config.std))


def published_colours(name: str) -> set[tuple[Colour, Colour]]:
    """The means and deviations of all weights of an architecture that timm knows."""
    found = [timm.get_pretrained_cfg(tag) for tag in timm.list_models(f"{name}.*", pretrained=True)]
    return {(_colour(each.mean), _colour(each.std)) for each in found if each is not None}


def _colour(values: Iterable[float]) -> Colour:
    red, green, blue = map(float, values)
    return red, green, blue


@lru_cache(maxsize=128)
def _shapes(name: str) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    """The shapes of all weights, and what the names of its classifier's begin with."""
    with torch.device("meta"):
        model: Any = timm.create_model(name, num_classes=0)
    heads = model.pretrained_cfg.get("classifier") or ()
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}, _texts(heads)


def _texts(names: str | Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _is(name: str, state: Mapping[str, Tensor]) -> bool:
    """Whether the weights are the published model's with their shapes, but for positions of another size."""
    if not timm.is_model(name):
        return False
    expected, heads = _shapes(name)
    over = [key for key in state if key not in expected and not _OPTIONAL.search(key)]
    if any(not key.startswith(tuple(f"{head}." for head in heads)) for key in over):
        return False
    return all(
        tuple(state[key].shape) in (shape, shape[:2] if shape[2:] == (1, 1) else shape) or bool(POSITIONS.search(key))
        if key in state
        else _OPTIONAL.search(key) is not None
        for key, shape in expected.items()
    )
