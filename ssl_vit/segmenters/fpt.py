"""The feature pyramid transformer, the decoder of Fully Transformer Networks (arXiv 2106.04108).

Each level of a feature pyramid network is a branch of transformer blocks with enlargements between them; the branches
meet at the finest level and are summed. The authors' own file turns a map on its side each time it comes back from
tokens, so that rows and columns of the branches are mixed up; here they are not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from ssl_vit.backbones.layers import (
    PreNormBlock,
    ReducedAttention,
    conv_norm,
    init_linear,
    pad_to_multiple,
    to_map,
    to_tokens,
)
from ssl_vit.backbones.pyramid import drop_path_rates
from ssl_vit.segmenters.per_pixel import Classifier
from ssl_vit.segmenters.segmenter import enlarge

HEADS, REDUCTION, RATIO = 4, 2, 4  # of the official models: heads, cells a side that one key stands for, hidden width
DROP_PATH = (0.3, 0.2, 0.1)  # of the branches, coarsest first: it rises to this over a branch's blocks
STRIDES = (8, 16, 32)  # of the levels


class Coarser(nn.Module):
    """A convolution makes a map half as large, for keys and values; what a side has over is padded with zeros."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.sr = conv_norm(dim, dim, REDUCTION, REDUCTION, 0)

    def forward(self, map_: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, D, H / 2, W / 2]."""
        coarse: Tensor = self.sr(pad_to_multiple(map_, REDUCTION))
        return coarse


class Block(PreNormBlock):
    """A transformer block whose attention sees the map made coarser (spatial reduction, arXiv 2102.12122)."""

    def __init__(self, dim: int, drop_path: float) -> None:
        attention = ReducedAttention(dim, HEADS, Coarser(dim))
        super().__init__(dim, attention, Mlp(dim, RATIO * dim), drop_path, 1e-5)


class FeaturePyramidTransformer(nn.Module):
    """Levels [B, C_i, H_i, W_i], finest first, become scores [B, classes, H_0, W_0]; width: of all maps between."""

    def __init__(self, channels: Sequence[int], classes: int, width: int = 512) -> None:
        super().__init__()
        self.fpn = FeaturePyramidNetwork(list(channels), width)
        self.branches = nn.ModuleList()  # coarsest first
        for branch, most in zip(range(len(channels)), (*DROP_PATH, *[0.0] * len(channels)), strict=False):
            [rates] = drop_path_rates(most, [len(channels) - branch])
            self.branches.append(nn.ModuleList(Block(width, rate) for rate in rates))
        self.classifier = Classifier(width, classes)
        init_linear(self.branches)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Score every class at every cell of the finest map."""
        named = OrderedDict((str(place), map_) for place, map_ in enumerate(maps))
        pyramid: list[Tensor] = list(self.fpn(named).values())
        total = torch.zeros_like(pyramid[0])
        for place, branch in zip(reversed(range(len(pyramid))), self.branches, strict=True):
            x = pyramid[place]
            for block, target in zip(cast(nn.ModuleList, branch), (*reversed(pyramid[:place]), None), strict=True):
                size = (x.shape[-2], x.shape[-1])
                x = to_map(block(to_tokens(x), size), size)
                if target is not None:
                    x = enlarge(x, (target.shape[-2], target.shape[-1]))
            total = total + x
        scores: Tensor = self.classifier(total)
        return scores
