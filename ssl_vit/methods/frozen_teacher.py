"""A frozen teacher of any make looks at the student's images as it wants them: its own colours, its own size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.backbone import BackboneInfo, Colour, Features
from ssl_vit.backbones.intermediates import (
    has_class_token,
    layer_count,
    layer_widths,
    read_all,
    read_layers,
    reads_at_once,
)
from ssl_vit.backbones.layout import grids
from ssl_vit.checkpoints.load import backbone_of_file
from ssl_vit.checkpoints.reader import files_of, weights_file
from ssl_vit.errors import UserError


class Source(NamedTuple):
    """Where a teacher comes from."""

    weights: str  # what `ssl-vit inspect` knows
    name: str | None = None  # timm's, where the file doesn't say it
    mean: Colour | None = None  # of images in [0, 1], where the file doesn't say it
    std: Colour | None = None


def network_of(source: Source) -> AdaptedBackbone:
    """The network of a file, frozen; read once, as a run asks for it several times before its first step.

    Raises:
        UserError: as ``backbone_of_file``.
    """
    stamps = [(each.stat().st_mtime_ns, each.stat().st_size) for each in files_of(weights_file(source.weights))]
    return _network(source, tuple(stamps))


@lru_cache(maxsize=1)
def _network(source: Source, _: object) -> AdaptedBackbone:
    return backbone_of_file(*source).eval().requires_grad_(False)


def check_size(info: BackboneInfo, size: int) -> None:
    """UserError where a teacher can't take images of ``size`` pixels."""
    able = f"multiples of {info.multiple} from {max(info.smallest, info.multiple)} on"
    fits = size % info.multiple == 0 and size >= info.smallest
    if not info.any_size:
        able, fits = f"{info.size[0]} x {info.size[1]} pixels only", info.size == (size, size)
    if not fits:
        raise UserError(f"method.teacher_size: {size} pixels, and the teacher, {info.name}, takes {able}; set it so")


def grid_at(info: BackboneInfo, size: int) -> tuple[int, int]:
    """The rows and columns of patches of images of ``size`` pixels."""
    return info.grid if info.size == (size, size) else grids((size, size), info.stages[-1].stride)[-1]


class FrozenTeacher:
    """A network beside a method, and no part of it: never trained, moved by no optimiser, kept in no checkpoint.

    student: the info of the network that gets the same images, normalised by its own mean and deviation; layer: the
    one of the teacher that is looked at, -1 for what it gives; size: of its images, pixels.
    """

    def __init__(self, source: Source, student: BackboneInfo, size: int, layer: int = -1) -> None:
        self.network = network_of(source)
        self.info, self.size = self.network.info, size
        check_size(self.info, size)
        self.layer = checked_layer(self.network, layer)
        self.last = layer == -1
        self.class_token = has_class_token(self.network)
        self.colours = _recoloured((student.mean, student.std), (self.info.mean, self.info.std))
        widths = layer_widths(self.network)
        self.dim = self.info.dim if self.last else widths[self.layer]
        self.patch_dim = self.info.patch_dim if self.last else widths[self.layer]

    @cached_property
    def at_once(self) -> bool:
        """Whether its layers and what it gives can be read in one pass."""
        return reads_at_once(self.network)

    @torch.no_grad()
    def look(self, images: Tensor) -> Features:
        """What it makes of the student's images [B, 3, S, S]: one vector each, and patches on its own grid."""
        self._come_to(images)
        if self.last:
            found: Features = self.network(self.as_it_wants(images))
            return found
        return self._pooled(*read_layers(self.network, self.as_it_wants(images), [self.layer])[0])

    @torch.no_grad()
    def look_into(self, images: Tensor, layers: Sequence[int]) -> tuple[Features, list[Tensor]]:
        """As ``look``, and the patches [B, D, H, W] of several layers, from 0."""
        self._come_to(images)
        seen = self.as_it_wants(images)
        if self.last:
            return read_all(self.network, seen, layers, self.at_once)
        found = dict(zip(names := sorted({*layers, self.layer}), read_layers(self.network, seen, names), strict=True))
        return self._pooled(*found[self.layer]), [found[layer][0] for layer in layers]

    def as_it_wants(self, images: Tensor) -> Tensor:
        """The student's images [B, 3, S, S] in the teacher's colours and size."""
        gain, offset = (torch.tensor(each).to(images, non_blocking=True)[:, None, None] for each in self.colours)
        if self.colours != ((1.0,) * 3, (0.0,) * 3):
            images = torch.addcmul(offset, images, gain)
        if images.shape[-1] != self.size:
            images = F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True)
        return images

    def _pooled(self, patches: Tensor, prefix: Tensor | None) -> Features:
        pooled = prefix[:, 0] if self.class_token and prefix is not None else patches.mean((-2, -1))
        return Features(pooled, patches)

    def _come_to(self, images: Tensor) -> None:
        """The network lies where the images do; nothing else moves it, as it is no part of the method."""
        weight = next(self.network.parameters())
        if (weight.device, weight.dtype) != (images.device, images.dtype):
            self.network.to(images)


def checked_layer(backbone: AdaptedBackbone, layer: int) -> int:
    """The number of a layer from 0; UserError where the teacher has no such layer."""
    count = layer_count(backbone)
    if not -count <= layer < count:
        raise UserError(f"method.teacher_layer: {layer}, and {backbone.info.name} has layers 0 to {count - 1}")
    return layer % count


def _recoloured(own: tuple[Colour, Colour], wanted: tuple[Colour, Colour]) -> tuple[Colour, Colour]:
    """What normalised values are multiplied with, and what is added, for other means and deviations."""
    (mean, std), (new_mean, new_std) = own, wanted
    gain = [a / b for a, b in zip(std, new_std, strict=True)]
    offset = [(a - b) / c for a, b, c in zip(mean, new_mean, new_std, strict=True)]
    return (gain[0], gain[1], gain[2]), (offset[0], offset[1], offset[2])
