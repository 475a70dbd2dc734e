"""Four maps of one: ViTDet's simple feature pyramid for backbones without stages (arXiv 2203.16527)."""

from __future__ import annotations

import math
from collections import OrderedDict

from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock


class SimplePyramid(nn.Module):
    """From one map [B, C, h, w] a map of every stride, [B, out_channels, …], each without a look at the others.

    Finer maps come from transposed convolutions, coarser ones from max pooling, by the power of 2 that is nearest to
    what is asked for; then a convolution of 1 x 1 and one of 3 x 3. Takes and gives what torchvision's
    FeaturePyramidNetwork does.

    >>> import torch
    >>> pyramid = SimplePyramid(32, stride=16, strides=(4, 8, 16, 32), out_channels=8)
    >>> [tuple(map_.shape[-2:]) for map_ in pyramid({"0": torch.zeros(1, 32, 4, 4)}).values()]
    [(16, 16), (8, 8), (4, 4), (2, 2)]
    """

    def __init__(
        self,
        channels: int,
        stride: int,
        strides: tuple[int, ...],
        out_channels: int,
        extra_blocks: ExtraFPNBlock | None = None,
    ) -> None:
        super().__init__()
        doublings = [round(math.log2(stride / wanted)) for wanted in strides]
        self.levels = nn.ModuleList(_level(channels, times, out_channels) for times in doublings)
        self.extra_blocks = extra_blocks

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turn {"0": [B, C, h, w]} into a map for each stride under "0", "1", …, and those of the extra blocks."""
        [map_] = maps.values()
        found = [level(map_) for level in self.levels]
        names = [str(place) for place in range(len(found))]
        if self.extra_blocks is not None:
            found, names = self.extra_blocks(found, [map_] * len(found), names)
        return OrderedDict(zip(names, found, strict=True))


def _level(channels: int, doublings: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for step in range(doublings):
        if step:
            layers += [LayerNorm2d(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, stride=2))
        channels //= 2
    if doublings < 0:
        layers.append(nn.MaxPool2d(2**-doublings))
    layers += [nn.Conv2d(channels, out_channels, 1, bias=False), LayerNorm2d(out_channels)]
    layers += [nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False), LayerNorm2d(out_channels)]
    return nn.Sequential(*layers)
