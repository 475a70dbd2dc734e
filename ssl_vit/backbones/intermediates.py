"""The layers of a backbone, counted as timm counts what ``forward_intermediates`` gives, and what stands in each."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_vit.backbones.backbone import Backbone, Features
from ssl_vit.backbones.module_adapter import ModuleBackbone
from ssl_vit.backbones.timm_adapter import TimmBackbone

Layer = tuple[Tensor, Tensor | None]
"""Patches [B, D, H, W] and prefix tokens [B, P, D], where there are such."""


def layer_widths(backbone: Backbone) -> list[int]:
    """Channels of each layer: timm's, or the stages that were declared."""
    if isinstance(backbone, ModuleBackbone):
        return [stage.channels for stage in backbone.info.stages]
    return [int(layer["num_chs"]) for layer in _model(backbone).feature_info]


def layer_count(backbone: Backbone) -> int:
    """The number says how many layers there are to read from."""
    return len(layer_widths(backbone))


def has_class_token(backbone: Backbone) -> bool:
    """The answer says whether the backbone has a class token, so that pooling "class" is there."""
    if isinstance(backbone, ModuleBackbone):
        return False
    model = _model(backbone)
    prefix = "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters
    return prefix and getattr(model, "cls_token", None) is not None


def read_layers(backbone: Backbone, images: Tensor, layers: Sequence[int]) -> list[Layer]:
    """Each layer (from 0) of images [B, 3, H, W], normalised by the model's last norm where it has one for that."""
    if isinstance(backbone, ModuleBackbone):
        maps = backbone.pyramid(images)
        return [(maps[layer], None) for layer in layers]
    found = _intermediates(backbone, images, layers, alone=True)
    return [_pair(found[layer]) for layer in layers]


def read_all(
    backbone: Backbone, images: Tensor, layers: Sequence[int], at_once: bool = True
) -> tuple[Features, list[Tensor]]:
    """What a pass gives, and the patches [B, D, H, W] of each layer (from 0).

    at_once: in the same pass, where ``reads_at_once`` says that it gives the same; else in two.
    """
    if not at_once:
        return backbone(images), [patches for patches, _ in read_layers(backbone, images, layers)]
    if not isinstance(backbone, TimmBackbone):
        maps = backbone.pyramid(images)  # of which it pools the mean of the last
        return Features(maps[-1].mean((-2, -1)), maps[-1]), [maps[layer] for layer in layers]
    last = layer_count(backbone) - 1
    final, found = _intermediates(backbone, images, [*layers, last], alone=False)
    by_layer = {layer: _pair(each)[0] for layer, each in found.items()}
    pooled = backbone.layout.pool(backbone.model, final, by_layer[last])
    return Features(pooled, by_layer[last]), [by_layer[layer] for layer in layers]


@torch.no_grad()
def reads_at_once(backbone: Backbone) -> bool:
    """Whether the pass that gives the layers also gives what a plain one does; a look at one image of noise."""
    weight, info = next(backbone.parameters()), backbone.info
    small = 2 * max(info.multiple, info.stages[-1].stride, info.smallest)
    size = (small, small) if info.any_size and small % info.multiple == 0 else info.size
    noise = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(weight)
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    try:
        plain, found = backbone(noise), read_all(backbone, noise, [])[0]
        return all(a.shape == b.shape and torch.allclose(a, b, 1e-4, 1e-5) for a, b in zip(plain, found, strict=True))
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):  # its head wants something else
        return False
    finally:
        for module, mode in modes:
            module.training = mode


def _intermediates(backbone: Backbone, images: Tensor, layers: Sequence[int], alone: bool) -> Any:
    """What timm gives by layer; with what its head would be given before that, where the layers aren't ``alone``."""
    model = _model(backbone)
    known = inspect.signature(model.forward_intermediates).parameters
    wanted = ("norm", "return_prefix_tokens") if _has_prefix(backbone) else ("norm",)  # timm fails where there is none
    options = {name: True for name in wanted if name in known}
    ordered = sorted(set(layers))
    found = model.forward_intermediates(images, indices=ordered, intermediates_only=alone, **options)
    if alone:
        return dict(zip(ordered, found, strict=True))
    return found[0], dict(zip(ordered, found[1], strict=True))


def _has_prefix(backbone: Backbone) -> bool:
    """Whether there are tokens in front that are no patch, as far as that is known."""
    return not isinstance(backbone, TimmBackbone) or backbone.layout.prefix > 0


def _pair(layer: Any) -> Layer:
    return (layer[0], layer[1]) if isinstance(layer, tuple | list) else (layer, None)


def _model(backbone: Backbone) -> Any:
    """timm's model, whose ``forward_intermediates`` is in no type."""
    return getattr(backbone, "model", backbone)
