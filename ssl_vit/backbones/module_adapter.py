"""The adapter between the backbone contract and any ``nn.Module`` whose author declares what it gives."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ssl_vit import plugins
from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.anatomy import Anatomy, Argument, Arguments, smallest_multiple, smallest_size
from ssl_vit.backbones.backbone import BackboneInfo, Features, Stage, Visible
from ssl_vit.backbones.layers import Size
from ssl_vit.backbones.layout import FeatureLayout, Sight, grids
from ssl_vit.errors import UserError
from ssl_vit.registry import BACKBONES, BackboneEntry, Declared, NetworkKind, Origin, said, spelt

_GIVEN = {"img_size": "use image_size", "drop_path_rate": "use drop_path"}  # arguments that the adapter gives


class ModuleBackbone(AdaptedBackbone):
    """Somebody's own network behind the contract; masks hide pixels, and pooled is the mean of the patches.

    ``model`` is the author's own module, with the names of weights that she gave them.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, entry: BackboneEntry, masked: bool = False) -> None:
        super().__init__(model, anatomy, masked)
        self.entry = entry

    def architecture(self) -> dict[str, Any]:
        """As timm's config.json, and what registered the network, without which nobody can build it."""
        colours = {"mean": list(self.info.mean), "std": list(self.info.std)}
        return {
            "architecture": self.info.name,
            "num_classes": 0,
            "num_features": self.info.dim,
            "model_args": dict(self.model_args),
            "pretrained_cfg": {"input_size": [3, *self.info.size], "num_classes": 0, **colours},
            "plugin": (plugins.source_of(self.entry.origin.module) if self.entry.origin.file else None) or {},
        }

    def visible(self, images: Tensor, kept: Tensor) -> Visible:
        """ValueError: only plain transformers of timm's can leave patches out (see ``info.drops_patches``)."""
        raise ValueError(f"{self.info.name}: can't leave patches out; it isn't a plain transformer")

    def place_patches(self, positions: Tensor, fixed: bool) -> None:
        """Nothing: what the network knows of positions is its own."""

    def look_at_neighbours(self) -> None:
        """Nothing: its tables, if it has any, are its own."""


@dataclass(frozen=True)
class DeclaredLayout(FeatureLayout):
    """Where a network of any making keeps what the contract asks for: in what its ``forward`` gives."""

    def features(self, model: Any, images: Tensor) -> Any:
        """A map, tokens or a map a stage; images: [B, 3, H, W]."""
        return model(images)

    def pyramid(self, model: Any, images: Tensor) -> list[Tensor]:
        """The map of every stage, finest first; images: [B, 3, H, W]."""
        return list(model(images)) if self.levels else [self.encode(model, images)[1]]


def as_backbone(
    module: nn.Module, *, kind: NetworkKind, dim: int, stride: int, name: str | None = None, **declared: Any
) -> ModuleBackbone:
    """A copy of a module behind the backbone contract, registered so that this process makes further copies by name.

    module: images [B, 3, H, W], normalised, to what is declared; its weights are what a run begins with. kind, dim,
    stride and declared: see :class:`ssl_vit.registry.Declared`. name: that of its class without.

    Raises:
        UserError: it does not give what is declared, or the name is taken.

    >>> backbone = as_backbone(nn.Conv2d(3, 8, 4, stride=4), kind="convolutional", dim=8, stride=4, name="patches")
    >>> backbone.info.grid, backbone(torch.zeros(1, 3, 16, 16)).patches.shape
    ((56, 56), torch.Size([1, 8, 4, 4]))
    """
    kept, thing = copy.deepcopy(module), type(module)
    entry = BackboneEntry(
        name or thing.__name__,
        lambda: copy.deepcopy(kept),
        Declared(kind, dim, stride, **declared),
        Origin(thing.__module__, "as_backbone", None, 0),
    )
    backbone = create(entry, None, 0.0, {}, masked=False)
    BACKBONES.add(entry)
    return backbone


def create(
    entry: BackboneEntry, size: Size | None, drop_path: float, args: Mapping[str, Argument], masked: bool
) -> ModuleBackbone:
    """The network with random weights; arguments and errors are those of ``create_backbone``."""
    anatomy = examine(entry, size, tuple(sorted(args.items())))
    settings: dict[str, Argument] = dict(anatomy.build_args)
    if anatomy.info.drops_paths:
        settings["drop_path_rate"] = drop_path
    elif drop_path:
        raise UserError(f"drop_path is {drop_path}, but {entry.name} has no stochastic depth; set drop_path to 0")
    return ModuleBackbone(_build(entry, settings), anatomy, entry, masked)


@lru_cache(maxsize=128)
def examine(entry: BackboneEntry, size: Size | None, args: Arguments) -> Anatomy:
    """Build the network and look whether it gives what is declared: without arithmetic, or where it can't so, with it.

    Raises:
        UserError: a wrong argument, a size that it can't take, another shape than the declared one.
    """
    known = _parameters(entry)
    for key, _ in args:
        if key in _GIVEN:
            raise UserError(f"model_args.{key}: not for the user to set; {_GIVEN[key]}")
        if known is not None and key not in known:
            raise UserError(f"model_args.{key}: {entry.name} has no such argument; {spelt(key, known - _GIVEN.keys())}")
    side = entry.declared.image_size
    size = size or (side, side)
    build_args = dict(args)
    if known is not None and "img_size" in known:
        build_args["img_size"] = size[0] if size[0] == size[1] else size
    try:
        info, layout = _look(entry, size, build_args, torch.device("meta"))
    except UserError:
        raise
    except Exception:  # of any type: a network may do what only real tensors can
        info, layout = _look_closely(entry, size, build_args)
    info = replace(info, drops_paths=known is not None and "drop_path_rate" in known)
    return Anatomy(info, layout, args, tuple(build_args.items()))


def _look_closely(entry: BackboneEntry, size: Size, args: dict[str, Argument]) -> tuple[BackboneInfo, FeatureLayout]:
    try:
        with torch.random.fork_rng(devices=[]):
            return _look(entry, size, args, torch.device("cpu"))
    except UserError:
        raise
    except Exception as error:  # whatever a stranger's network raises
        raise UserError(
            f"{entry.origin}: the backbone {entry.name!r} can't take images of {size[0]}×{size[1]} pixels "
            f"({said(error)}); mend it, or change image_size"
        ) from error


def _look(
    entry: BackboneEntry, size: Size, args: dict[str, Argument], device: torch.device
) -> tuple[BackboneInfo, FeatureLayout]:
    declared = entry.declared
    stages = declared.stages or ((declared.dim, declared.stride),)
    levels = tuple(range(len(stages))) if declared.stages else ()
    layout = DeclaredLayout(stride=declared.stride, prefix=declared.prefix, head=False, levels=levels)
    with device, torch.no_grad():
        model = _build(entry, args).to(device).eval()
        images = torch.zeros(2, 3, *size)
        _compare(entry, size, model(images))
        features = layout.read(model, images)
        sight = Sight(layout, features, layout.pyramid(model, images))
        multiple = smallest_multiple(model, size, sight, {stride for _, stride in stages})
        smallest = smallest_size(model, layout, size, multiple)
    parameters = sum(weight.numel() for weight in model.parameters())
    return replace(_info(entry, size, features, multiple, parameters), smallest=smallest), layout


def _info(entry: BackboneEntry, size: Size, features: Features, multiple: int | None, parameters: int) -> BackboneInfo:
    declared = entry.declared
    return BackboneInfo(
        name=entry.name,
        family=entry.origin.file.stem if entry.origin.file else entry.origin.module,
        kind=declared.kind,
        dim=declared.dim,
        patch_dim=declared.dim,
        stages=tuple(Stage(*stage) for stage in declared.stages or ((declared.dim, declared.stride),)),
        patch=None,
        size=size,
        grid=(features.patches.shape[2], features.patches.shape[3]),
        any_size=multiple is not None,
        multiple=multiple or 1,
        mean=declared.mean,
        std=declared.std,
        parameters=parameters,
    )


def _build(entry: BackboneEntry, args: Mapping[str, Argument]) -> nn.Module:
    try:
        model = entry.build(**args)
    except Exception as error:  # whatever a stranger's constructor raises
        given = ", ".join(f"{key}={value}" for key, value in args.items()) or "no arguments"
        raise UserError(
            f"{entry.origin}: the backbone {entry.name!r} can't be built with {given} ({said(error)}); mend it, or "
            "change backbone.args"
        ) from error
    if not isinstance(model, nn.Module):
        raise UserError(
            f"{entry.origin}: the backbone {entry.name!r} is a {type(model).__name__}, expected a torch.nn.Module"
        )
    return model


def _parameters(entry: BackboneEntry) -> frozenset[str] | None:
    """The arguments that it takes by name; None where it takes any."""
    parameters = inspect.signature(entry.build).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(parameter.name for parameter in parameters)


def _compare(entry: BackboneEntry, size: Size, found: Any) -> None:
    """UserError where what the network gives isn't what is declared."""
    declared = entry.declared
    wanted, given = _wanted(declared, size), _shapes(found)
    if given in wanted:
        return
    settings = f"gives={declared.gives!r}, dim={declared.dim}, stride={declared.stride}"
    settings += f", prefix={declared.prefix}" if declared.prefix else ""
    settings += f", stages={declared.stages}" if declared.stages else ""
    raise UserError(
        f"{entry.origin}: the backbone {entry.name!r} is declared to give {_words(wanted[0])} of two images of "
        f"{size[0]}×{size[1]} pixels ({settings}), and gives {_words(given)}; mend the declaration or the network"
    )


Shapes = list[tuple[int, ...]] | tuple[int, ...] | str


def _wanted(declared: Declared, size: Size) -> list[Shapes]:
    """The shapes that are right for two images, whether the network cuts off or pads what is over."""

    def maps(channels: int, stride: int) -> list[tuple[int, ...]]:
        return [(2, channels, *grid) for grid in grids(size, stride)]

    if declared.stages:
        each = [maps(*stage) for stage in declared.stages]
        return [[shapes[way] for shapes in each] for way in (0, 1)]
    if declared.gives == "map":
        return [*maps(declared.dim, declared.stride)]
    return [(2, declared.prefix + rows * columns, declared.dim) for rows, columns in grids(size, declared.stride)]


def _shapes(found: Any) -> Shapes:
    if isinstance(found, Tensor):
        return tuple(found.shape)
    if isinstance(found, list | tuple) and all(isinstance(each, Tensor) for each in found):
        return [tuple(each.shape) for each in found]
    return f"a {type(found).__name__}"


def _words(shapes: Shapes) -> str:
    if isinstance(shapes, str):
        return shapes
    return ", ".join(str(list(shape)) for shape in shapes) if isinstance(shapes, list) else str(list(shapes))
