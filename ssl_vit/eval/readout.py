"""Which numbers of a backbone are an image's features: the layers, how each is pooled, and at what precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_vit.backbones.backbone import Backbone, BackboneInfo
from ssl_vit.backbones.intermediates import has_class_token, layer_count, layer_widths, read_layers
from ssl_vit.errors import UserError

LAST = (-1,)


@dataclass(frozen=True)
class Readout:
    """A readout says how an image becomes a feature vector: all but the weights. Equal ones give comparable features.

    layers are counted as timm counts what ``forward_intermediates`` gives (the blocks of a ViT, the stages of a
    hierarchical model), from 0 or, negative, from the end; each is normalised by the model's last norm where it has
    one for that, and they are concatenated, as DINO and DINOv2 do (arXiv 2104.14294, 2304.07193). pooling: "model" is
    what the model's own head would see; "class" is the class token, "mean" the mean of the patches.
    """

    image_size: int  # pixels
    mean: tuple[float, float, float]  # of images in [0, 1]
    std: tuple[float, float, float]
    layers: tuple[int, ...] = LAST
    pooling: str = "model"
    precision: str = "float32"
    batch_size: int = 64  # part of it: the last digits of a product depend on the number of rows

    @classmethod
    def of(
        cls, info: BackboneInfo, layers: tuple[int, ...] = LAST, pooling: str = "model", precision: str = "float32"
    ) -> Readout:
        """The readout has a backbone's own size, mean and deviation; UserError where the size is not square."""
        height, width = info.size
        if height != width:
            raise UserError(f"{info.name}: was built for {height}x{width} pixels; only square images are scored")
        return cls(height, info.mean, info.std, layers, pooling, precision)

    @property
    def transform(self) -> str:
        """The text says what is done to an image."""
        short = round(self.image_size * 256 / 224)
        return f"shorter side to {short} bicubic antialiased, central crop {self.image_size}"


def read_out(backbone: Backbone, images: Tensor, readout: Readout) -> Tensor:
    """Normalised images [B, 3, S, S] become features [B, D], float32.

    With several layers or "class+mean" the parts stand one after the other, see ``layer_columns``.

    Raises:
        UserError: a layer or a class token that the backbone doesn't have.
    """
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=readout.precision == "bfloat16"):
        if readout.layers == LAST and readout.pooling == "model":
            pooled: Tensor = backbone(images).pooled
            return pooled.float()
        found = layer_columns(backbone, readout)
        layers = list(dict.fromkeys(part.layer for part in found))
        maps = dict(zip(layers, read_layers(backbone, images, layers), strict=True))
    return torch.cat([_pool(*maps[part.layer], part.pooling) for part in found], 1)


class LayerColumns(NamedTuple):
    """Columns start to stop of the features are one layer's, pooled in one way."""

    layer: int  # from 0
    pooling: str  # "class" or "mean"
    start: int
    stop: int


def layer_columns(backbone: Backbone, readout: Readout) -> list[LayerColumns]:
    """What ``read_out`` gives has these columns, where it is not the model's own vector; layers as they were named.

    Raises:
        UserError: a layer or a class token that the backbone doesn't have.
    """
    widths = layer_widths(backbone)
    kinds = readout.pooling.split("+") if readout.pooling != "model" else [_like_the_head(backbone)]
    if "class" in kinds and not has_class_token(backbone):
        raise UserError(f"{backbone.info.name}: has no class token; use --pooling mean")
    found, start = list[LayerColumns](), 0
    for layer in readout.layers:
        if not -len(widths) <= layer < len(widths):
            raise UserError(f"{backbone.info.name}: has layers 0 to {len(widths) - 1}; got layer {layer} (--layers)")
        width = widths[layer]
        for kind in kinds:
            found.append(LayerColumns(layer % len(widths), kind, start, start + width))
            start += width
    return found


def pooling_of(backbone: Backbone) -> str:
    """The word, timm's ("avg", "token", …), says how the model makes one vector of its last map or tokens."""
    model = getattr(backbone, "model", backbone)
    for owner in (getattr(model, "head", None), model):
        pool = getattr(owner, "global_pool", None)
        kind = pool if isinstance(pool, str) else getattr(pool, "pool_type", None)
        if kind:
            return str(kind)
    return "the model's own"


def patch_maps(backbone: Backbone, images: Tensor, layer: int = -1) -> Tensor:
    """One layer gives patches [B, D, H, W], normalised by the model's last norm where it has one for that."""
    return read_layers(backbone, images, [layer % layer_count(backbone)])[0][0].float()


def _pool(patches: Tensor, prefix: Tensor | None, kind: str) -> Tensor:
    if kind == "mean":
        return patches.float().mean((-2, -1))
    assert prefix is not None  # layer_columns() refuses a class token that isn't there
    return prefix[:, 0].float()


def _like_the_head(backbone: Backbone) -> str:
    return "class" if pooling_of(backbone) == "token" and has_class_token(backbone) else "mean"
