"""A timm model is tried on the meta device for what it can do: no weights, no arithmetic, about a second."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ssl_vit.backbones.backbone import BackboneInfo, Stage
from ssl_vit.backbones.kinds import kind_by_layers, kind_of
from ssl_vit.backbones.layers import Size
from ssl_vit.backbones.layout import FeatureLayout, Sight, TimmModel, find_layout
from ssl_vit.backbones.shapes import ShapesAlone
from ssl_vit.backbones.timm_mixers import free_sizes
from ssl_vit.errors import UserError
from ssl_vit.registry import said
from ssl_vit.spelling import did_you_mean

_log = logging.getLogger("ssl_vit")

Argument = int | float | bool | str | tuple[int | float, ...]
Arguments = tuple[tuple[str, Argument], ...]

_NOT_YOURS = {  # constructor arguments that the adapter sets, with what to do instead
    "num_classes": "the head belongs to the method, leave it out",
    "in_chans": "images have three channels, leave it out",
    "device": "move the backbone with .to(), leave it out",
    "dtype": "weights are float32, leave it out",
    "drop_path_rate": "use drop_path",
    "features_only": "the pyramid is always there, leave it out",
    "pretrained": "load_weights reads a file",
    "checkpoint_path": "load_weights reads a file",
}


@dataclass(frozen=True)
class Anatomy:
    """The anatomy is a model as its adapter needs to know it."""

    info: BackboneInfo
    layout: FeatureLayout
    weight_args: Arguments  # with what plain timm makes a model that takes the same weights
    build_args: Arguments  # the same, and what frees the input's size


def build_model(name: str, args: Mapping[str, Argument]) -> TimmModel:
    """Build the timm model without a classifier, on torch's default device, of any size where only code forbids it."""
    settings: dict[str, Any] = dict(args)
    try:
        return free_sizes(timm.create_model(name, pretrained=False, num_classes=0, **settings))
    except Exception as error:  # constructors raise what their layers do: of any type, and always about the arguments
        said = " ".join(str(error).split()) or type(error).__name__
        given = ", ".join(f"{key}={value}" for key, value in args.items()) or "its own arguments"
        raise UserError(f"{name}: timm can't build it with {given} ({said}); change them") from error


@lru_cache(maxsize=512)
def accepted_args(name: str) -> frozenset[str]:
    """List what a name takes in `model_args`: the arguments of its constructor and the fields of its configuration.

    >>> "img_size" in accepted_args("vit_tiny_patch16_224"), "img_size" in accepted_args("resnet18")
    (True, False)
    """
    return _constructor_args(name) - _NOT_YOURS.keys()


@lru_cache(maxsize=512)
def examine(name: str, module: str, size: Size | None, args: Arguments) -> Anatomy:
    """Build the name on the meta device and try what it can do.

    module: where it is registered; size: (height, width) in pixels, or None for the published one; args: sorted
    `model_args`.

    Errors: UserError for a wrong key, for a size that the model can't take, for arguments that timm refuses.
    """
    known = _constructor_args(name)
    weight_args = _weight_args(name, dict(args), size)
    freeing = next((flag for flag in _FREEING if flag in known), None)
    build_args = {**({freeing: _FREEING[freeing]} if freeing else {}), **weight_args}
    with torch.device("meta"), ShapesAlone(), torch.no_grad():
        model = build_model(name, build_args).eval()
        size = _pair(weight_args.get("img_size") or size or model.pretrained_cfg["input_size"][1:])
        try:
            sight = find_layout(model, size)
        except Exception as error:  # of any type, and always about the size
            what = f"{name}: can't take images of {size[0]}×{size[1]} pixels"
            raise UserError(f"{what} ({said(error)}); {_least(model, size, name) or 'change image_size'}") from error
        if type(model).__name__ in _FAIL_UNSEEN and any(side % (unit := _coarsest(model)) for side in size):
            raise UserError(f"{name}: can't take images of {size[0]}×{size[1]} pixels, only multiples of {unit}")
        info = _info(model, name, module, size, sight)
    info = dataclasses.replace(info, drops_paths="drop_path_rate" in known)
    return Anatomy(info, sight.layout, tuple(weight_args.items()), tuple(build_args.items()))


_FREEING: dict[str, Argument] = {  # arguments that let a model take other sizes than it was built for, best first
    "dynamic_img_size": True,
    "strict_img_size": False,
}
_PLAIN = (VisionTransformer, VisionTransformerDistilled)  # each block takes any set of tokens
PLAIN_FAMILIES = {model.__module__.rpartition(".")[2] for model in _PLAIN}
# Models that fail at larger sizes, and built for cells that are not whole, where the meta device, which reads no index,
# can't see it.
_FAIL_UNSEEN = {"MultiScaleVit": "its tables of relative positions end at the size it was built for"}


@lru_cache(maxsize=512)
def _constructor_args(name: str) -> frozenset[str]:
    with torch.device("meta"), ShapesAlone():
        parents: tuple[type, ...] = type(build_model(name, {})).__mro__
    found: set[str] = set()
    for constructor in (vars(parent)["__init__"] for parent in parents if "__init__" in vars(parent)):
        parameters = inspect.signature(constructor).parameters
        found.update(parameters)
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
            break  # takes no more than it names, so its parents' names are out of reach
        annotation = typing.get_type_hints(constructor).get("cfg")
        for config in (annotation, *typing.get_args(annotation)):  # alone or Optional; keywords go to its fields
            if dataclasses.is_dataclass(config):
                found.update(field.name for field in dataclasses.fields(config))
    return frozenset(found - {"self", "cfg", "args", "kwargs"})


def _weight_args(name: str, args: dict[str, Argument], size: Size | None) -> dict[str, Argument]:
    """`model_args` checked, with the size where it differs from the published one."""
    known = accepted_args(name)
    for key in args:
        if key in _NOT_YOURS:
            raise UserError(f"model_args.{key}: not for the user to set; {_NOT_YOURS[key]}")
        if key not in known:
            raise UserError(f"model_args.{key}: {name} has no such argument; {did_you_mean(key, sorted(known))}")
    if size is None or "img_size" not in known:
        return args
    if "img_size" in args and _pair(args["img_size"]) != size:
        raise UserError(f"model_args.img_size is {args['img_size']}, image_size is {size}; give one of them")
    config = timm.get_pretrained_cfg(name)
    published = config is not None and _pair(config.input_size[1:]) == size
    return args if published and "img_size" not in args else {**args, "img_size": size}


def _info(model: TimmModel, name: str, module: str, size: Size, sight: Sight) -> BackboneInfo:
    features, levels = sight.features, sight.layout.levels or (-1,)
    strides = [model.feature_info[level]["reduction"] for level in levels]
    multiple = None  # models that fail unseen take one size only
    if type(model).__name__ not in _FAIL_UNSEEN:
        multiple = smallest_multiple(model, size, sight, {level["reduction"] for level in model.feature_info})
    patch = patch_embedding(model)
    return BackboneInfo(
        name=name,
        family=module.rpartition(".")[2],
        kind=kind_of(name, module) or _guess(model, name),
        dim=features.pooled.shape[1],
        patch_dim=features.patches.shape[1],
        stages=tuple(Stage(level.shape[1], stride) for level, stride in zip(sight.maps, strides, strict=True)),
        patch=patch.patch_size[0] if patch else None,
        size=size,
        grid=(features.patches.shape[2], features.patches.shape[3]),
        any_size=multiple is not None,
        multiple=multiple or 1,
        smallest=smallest_size(model, sight.layout, size, multiple),
        mean=tuple(model.pretrained_cfg["mean"]),
        std=tuple(model.pretrained_cfg["std"]),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        drops_patches=patch is not None and type(model) in _PLAIN,
    )


def _coarsest(model: TimmModel) -> int:
    """The stride of the coarsest map, pixels."""
    return max(int(level["reduction"]) for level in model.feature_info)


def patch_embedding(model: TimmModel) -> Any:
    """Return the layer that embeds square patches of the image, none overlapping; None where there isn't one."""
    for module in model.modules():
        if isinstance(module, PatchEmbed) and isinstance(module.proj, nn.Conv2d) and module.proj.in_channels == 3:
            return module
    return None


def _guess(model: TimmModel, name: str) -> str:
    """The kind of a network of which nobody says it; the guess is said."""
    kind = kind_by_layers(model)
    _log.warning(
        "%s: nobody says what kind of network this is; by its layers it is taken for %s, on which recipes depend; "
        "declare it where it is registered, by ssl_vit.registry.declare_kind(__name__, …)",
        name,
        kind,
    )
    return kind


def smallest_multiple(model: nn.Module, size: Size, sight: Sight, strides: set[int]) -> int | None:
    """The smallest number of pixels that sizes must be a multiple of; None if only `size` will do.

    strides: of the model's maps, pixels.
    """
    cell = size[0] / sight.features.patches.shape[2]
    for step in sorted({1, *strides, 2 * max(strides), 3 * max(strides)}):
        # odd multiples, so that a larger step that is really needed isn't hit by chance; far enough for another grid
        low = step * _odd(min(96, *size) / step)
        high = step * _odd((max(size) * 9 / 7 + max(strides)) / step + 1)
        if _takes(model, sight.layout, (low, high), cell) and _takes(model, sight.layout, (high, high), cell):
            return step
    return None


def smallest_size(model: nn.Module, layout: FeatureLayout, size: Size, multiple: int | None) -> int:
    """The smallest side in pixels, a multiple of `multiple`, whose squares and all larger ones pass; halving finds it.

    `size` passes; without a multiple it is the only one.
    """
    if multiple is None:
        return min(size)
    cell = size[0] / layout.encode(model, torch.zeros(2, 3, *size))[1].shape[2]
    fails, passes = 0, max(1, min(size) // multiple)  # in multiples
    while passes - fails > 1:
        middle = (fails + passes) // 2
        if _takes(model, layout, (middle * multiple, middle * multiple), cell):
            passes = middle
        else:
            fails = middle
    return passes * multiple


def _odd(number: float) -> int:
    """The odd number, at least 1, that is nearest."""
    return 2 * max(0, round((number - 1) / 2)) + 1


def _takes(model: nn.Module, layout: FeatureLayout, size: Size, cell: float) -> bool:
    """Whether images of this size pass, and their patches are as many pixels wide as they should."""
    try:
        patches = layout.read(model, torch.zeros(2, 3, *size)).patches  # on torch's default device
    except Exception:  # the answer is that it fails, however it does: asserts, shapes, indices, divisions
        return False
    return all(
        cells > 0 and abs(length / cell - cells) <= 1.5 for length, cells in zip(size, patches.shape[2:], strict=True)
    )


def _least(model: TimmModel, size: Size, name: str) -> str:
    """What to set instead of a size that is too small; "" where it isn't that."""
    usual = _pair(model.pretrained_cfg["input_size"][1:])
    try:
        sight = find_layout(model, usual)
    except Exception:  # as above: built for the wrong size, it takes no other
        return ""
    multiple = smallest_multiple(model, usual, sight, {level["reduction"] for level in model.feature_info})
    least = smallest_size(model, sight.layout, usual, multiple)
    return f"set image_size={least} or more" if least > min(size) else ""


def _pair(size: Any) -> Size:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
