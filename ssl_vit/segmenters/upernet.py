"""UPerNet: pooling at four scales on the coarsest map, a feature pyramid network, and all of it fused (1807.10221)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import AdaptiveAvgPool2d

from ssl_vit.segmenters.per_pixel import Classifier, Convolved
from ssl_vit.segmenters.segmenter import enlarge

SCALES = (1, 2, 3, 6)  # cells a side of the pooled maps


class UPerNetDecoder(nn.Module):
    """Levels [B, C_i, H_i, W_i], finest first, become scores [B, classes, H_0, W_0]; width: of all maps between."""

    def __init__(self, channels: Sequence[int], classes: int, width: int = 512) -> None:
        super().__init__()
        *finer, coarsest = channels
        self.pooled = nn.ModuleList(
            nn.Sequential(AdaptiveAvgPool2d(scale), Convolved(coarsest, width, 1)) for scale in SCALES
        )
        self.bottleneck = Convolved(coarsest + len(SCALES) * width, width, 3)
        self.laterals = nn.ModuleList(Convolved(dim, width, 1) for dim in finer)
        self.smoothed = nn.ModuleList(Convolved(width, width, 3) for _ in finer)
        self.fused = Convolved(len(channels) * width, width, 3)
        self.classifier = Classifier(width, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Score every class at every cell of the finest map."""
        top = maps[-1]
        pooled = [enlarge(block(top), (top.shape[-2], top.shape[-1])) for block in self.pooled]
        pyramid = [self.bottleneck(torch.cat([top, *pooled], 1))]
        for map_, lateral in zip(reversed(maps[:-1]), reversed(self.laterals), strict=True):
            pyramid.insert(0, lateral(map_) + enlarge(pyramid[0], (map_.shape[-2], map_.shape[-1])))
        smoothed = [block(map_) for block, map_ in zip(self.smoothed, pyramid[:-1], strict=True)] + pyramid[-1:]
        size = (smoothed[0].shape[-2], smoothed[0].shape[-1])
        scores: Tensor = self.classifier(self.fused(torch.cat([enlarge(map_, size) for map_ in smoothed], 1)))
        return scores
