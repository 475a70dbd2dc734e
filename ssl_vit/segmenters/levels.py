"""Any backbone gives a segmenter maps of strides 4 to 32."""

from __future__ import annotations

import math

from torch import Tensor, nn

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.detectors.fpn import STRIDES
from ssl_vit.detectors.simple_pyramid import SimplePyramid


class Levels(nn.Module):
    """The levels are a backbone's stages, or those that ViTDet's simple pyramid makes of the one map of a plain one.

    strides: of the maps that are wanted; width: channels of the maps of a simple pyramid. ``channels`` are those of
    the maps, finest first.

    >>> import torch
    >>> from ssl_vit.backbones.registry import create_backbone
    >>> levels = Levels(create_backbone("resnet18"), 64)
    >>> [tuple(map.shape) for map in levels(torch.zeros(1, 3, 64, 64))]
    [(1, 64, 16, 16), (1, 128, 8, 8), (1, 256, 4, 4), (1, 512, 2, 2)]
    """

    def __init__(self, backbone: AdaptedBackbone, width: int, strides: tuple[int, ...] = STRIDES) -> None:
        super().__init__()
        self.body: nn.Module = backbone.model  # the weights under "body."
        self._layout = backbone.layout
        stages = backbone.info.stages
        self.kept = [index for index, stage in enumerate(stages) if stage.stride in strides]
        self.simple: SimplePyramid | None = None
        if len(stages) > 1 and self.kept:
            self.channels = [stages[index].channels for index in self.kept]
        else:
            self.kept = [len(stages) - 1]
            power = int(2 ** round(math.log2(stages[-1].stride)))
            self.simple = SimplePyramid(stages[-1].channels, power, strides, width)
            self.channels = [width] * len(strides)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map [B, 3, H, W] to the levels [B, channels[i], H / s_i, W / s_i], finest first."""
        maps = self._layout.pyramid(self.body, images)
        kept = [maps[index] for index in self.kept]
        return kept if self.simple is None else list(self.simple({"0": kept[0]}).values())
