"""A layout reads what a timm model gives: where the patches lie in its features, which maps are its pyramid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssl_vit.backbones.backbone import Features
from ssl_vit.backbones.layers import Size

TimmModel = Any  # an nn.Module; what timm's models have in common (forward_features, feature_info …) is in no type

# Models whose forward_features doesn't hold the last map in order; their forward_intermediates gives both in one pass.
_MAP_BESIDE_FEATURES = {
    "Hiera": "tokens come in the order of mask units, not of space",
    "PoolingVisionTransformer": "features are the class tokens alone",
    "EfficientViM": "features are the hidden states of the stages",
    "RegionViT": "features are the regional tokens alone",
}


@dataclass(frozen=True)
class FeatureLayout:
    """The layout says where a timm model keeps what the contract asks for."""

    beside: bool = False  # the last map lies beside the features: see _MAP_BESIDE_FEATURES
    channels_last: bool = False  # the last map is [B, H, W, D]
    stride: int = 1  # pixels per cell of the last map, as timm says
    prefix: int = 0  # tokens in front that are no patch
    head: bool = True  # forward_head pools; without, pooled is the mean of the patches
    levels: tuple[int, ...] = ()  # of forward_intermediates for the pyramid, finest first; () is the last map alone

    def encode(self, model: TimmModel, images: Tensor) -> tuple[Any, Tensor]:
        """Return what the model's head takes, and the last map [B, D, H, W], in one pass; images: [B, 3, H, W]."""
        if self.beside:
            features, maps = model.forward_intermediates(images, indices=1)
            return features, maps[-1]
        features = self.features(model, images)
        last = last_of(features)
        if last.ndim == 4:
            return features, last.permute(0, 3, 1, 2) if self.channels_last else last
        grid = _grid(last.shape[1] - self.prefix, (images.shape[-2], images.shape[-1]), self.stride)
        patches = last[:, self.prefix :].transpose(1, 2)
        return features, patches.reshape(patches.shape[0], -1, *grid)  # len() would fix the number when traced

    def features(self, model: TimmModel, images: Tensor) -> Any:
        """What the model's head takes; images: [B, 3, H, W]."""
        return model.forward_features(images)

    def read(self, model: TimmModel, images: Tensor) -> Features:
        """Compute pooled and patches in one pass; images: [B, 3, H, W]."""
        features, patches = self.encode(model, images)
        return Features(self.pool(model, features, patches), patches)

    def pool(self, model: TimmModel, features: Any, patches: Tensor) -> Tensor:
        """Pool one vector an image, [B, D], as the model's own head would see it."""
        pooled: Tensor = model.forward_head(features, pre_logits=True) if self.head else patches.mean((-2, -1))
        return pooled

    def pyramid(self, model: TimmModel, images: Tensor) -> list[Tensor]:
        """Return the map of every level, finest first; images: [B, 3, H, W]."""
        if not self.levels:
            return [self.encode(model, images)[1]]
        maps: list[Tensor] = model.forward_intermediates(images, indices=list(self.levels), intermediates_only=True)
        return maps


class Sight(NamedTuple):
    """A sight is a layout and what it reads."""

    layout: FeatureLayout
    features: Features
    maps: list[Tensor]  # the pyramid


def find_layout(model: TimmModel, size: Size) -> Sight:
    """Look at the shapes that the model gives for images of `size`; cheap on the meta device.

    Errors: whatever the model raises at a size that it can't take; ValueError for tokens that make no grid.
    """
    images = torch.zeros(2, 3, *size)
    maps, levels = _levels(model, images)
    layout = FeatureLayout(
        beside=any(parent.__name__ in _MAP_BESIDE_FEATURES for parent in type(model).__mro__),
        channels_last=getattr(model, "output_fmt", None) == "NHWC",
        stride=model.feature_info[-1]["reduction"],
        levels=levels,
    )
    if not layout.beside and (last := last_of(model.forward_features(images))).ndim == 3:
        layout = replace(layout, prefix=_prefix(last.shape[1], size, layout.stride))
    features, patches = layout.encode(model, images)
    layout = replace(layout, head=_pools(model, features))
    return Sight(layout, Features(layout.pool(model, features, patches), patches), maps or [patches])


def _levels(model: TimmModel, images: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
    """The last map of each size, and which they are; nothing where all have the same size."""
    if len({level["reduction"] for level in model.feature_info}) == 1:
        return [], ()
    maps: list[Tensor] = model.forward_intermediates(images, intermediates_only=True)
    last = {tuple(level.shape[-2:]): index for index, level in enumerate(maps)}
    return [maps[index] for index in last.values()], tuple(last.values())


def last_of(features: Any) -> Tensor:
    """The coarsest of the features where there are several."""
    last: Tensor = features[-1] if isinstance(features, list | tuple) else features
    return last


def grids(size: Size, stride: int) -> list[Size]:
    """The grid of cells of an image, whether the model cuts off or pads what is over."""
    height, width = size
    return [(height // stride, width // stride), (-(-height // stride), -(-width // stride))]


def _prefix(tokens: int, size: Size, stride: int) -> int:
    """How many tokens are left over when the grid is taken away."""
    return min(tokens - rows * columns for rows, columns in grids(size, stride) if rows * columns <= tokens)


def _grid(patches: int, size: Size, stride: int) -> Size:
    for rows, columns in grids(size, stride):
        if rows * columns == patches:
            return rows, columns
    raise ValueError(f"{patches} tokens make no grid of an image of {size[0]}×{size[1]} pixels")


def _pools(model: TimmModel, features: Any) -> bool:
    """Encoders without a classifier refuse to pool, or have no forward_head at all."""
    try:
        pooled = model.forward_head(features, pre_logits=True)
    except (AttributeError, NotImplementedError, TypeError):
        return False
    return isinstance(pooled, Tensor) and pooled.ndim == 2
