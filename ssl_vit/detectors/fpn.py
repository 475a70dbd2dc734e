"""A pyramid network makes any backbone's maps equally deep, as torchvision's detectors want them."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.detectors.simple_pyramid import SimplePyramid

STRIDES = (4, 8, 16, 32)  # of the maps that torchvision's detectors are made for


class BackboneWithFPN(nn.Module):
    """FasterRCNN, MaskRCNN and RetinaNet take this as their backbone; it has torchvision's names, ``body`` and ``fpn``.

    Stages go through a feature pyramid network (arXiv 1612.03144), the one map of a plain ViT through ViTDet's simple
    pyramid. A map whose stride is no power of 2, which torchvision takes all of them for, is resized to the nearest.
    strides: of the maps that are wanted; convolved: two more from convolutions, as RetinaNet has, instead of one by
    pooling. ``strides`` are then those of all maps, in pixels.

    >>> import torch
    >>> from ssl_vit.backbones.registry import create_backbone
    >>> backbone = BackboneWithFPN(create_backbone("resnet18"), out_channels=64)
    >>> {level: tuple(map.shape) for level, map in backbone(torch.zeros(1, 3, 64, 64)).items()}
    {'0': (1, 64, 16, 16), '1': (1, 64, 8, 8), '2': (1, 64, 4, 4), '3': (1, 64, 2, 2), 'pool': (1, 64, 1, 1)}
    """

    def __init__(
        self,
        backbone: AdaptedBackbone,
        out_channels: int = 256,
        *,
        strides: tuple[int, ...] = STRIDES,
        convolved: bool = False,
    ) -> None:
        super().__init__()
        self.body: nn.Module = backbone.model  # the weights under "body."
        self.out_channels = out_channels
        self._layout = backbone.layout
        stages = backbone.info.stages
        extra: ExtraFPNBlock = LastLevelP6P7(out_channels, out_channels) if convolved else LastLevelMaxPool()
        self.kept = [index for index, stage in enumerate(stages) if stage.stride in strides]  # of the stages
        self.fpn: nn.Module
        if len(stages) > 1 and self.kept:
            self.fpn = FeaturePyramidNetwork([stages[i].channels for i in self.kept], out_channels, extra)
            strides = tuple(stages[i].stride for i in self.kept)
        else:
            self.kept = [len(stages) - 1]
            self.fpn = SimplePyramid(stages[-1].channels, _power(stages[-1].stride), strides, out_channels, extra)
        self._own = [stages[i].stride for i in self.kept]
        self.strides = (*strides, *(strides[-1] * 2**i for i in range(1, 3 if convolved else 2)))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the backbone's maps that the pyramid network is given, [B, C_i, H/s_i, W/s_i], finest first."""
        maps = self._layout.pyramid(self.body, images)
        return [maps[index] for index in self.kept]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map [B, 3, H, W] to {"0": [B, out_channels, H/4, W/4], …}, then the coarser ones."""
        maps = OrderedDict[str, Tensor]()
        for level, (map_, stride) in enumerate(zip(self.maps(images), self._own, strict=True)):
            if _power(stride) != stride:
                size = images.shape[-2] // _power(stride), images.shape[-1] // _power(stride)
                map_ = F.interpolate(map_, size, mode="bilinear", align_corners=False)
            maps[str(level)] = map_
        pyramid: dict[str, Tensor] = self.fpn(maps)
        return pyramid


def _power(stride: int) -> int:
    """The power of 2 that is nearest by ratio."""
    return int(2 ** round(math.log2(stride)))
