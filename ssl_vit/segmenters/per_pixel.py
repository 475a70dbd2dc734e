"""A segmenter that scores every pixel on its own: a decoder over the backbone's levels, and an auxiliary head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.backbones.backbone import BackboneInfo
from ssl_vit.data.segment_scenes import SegmentScene
from ssl_vit.segmenters.levels import Levels
from ssl_vit.segmenters.segmenter import Segmentation, Segmenter, enlarge, likeliest

DROPOUT = 0.1  # of whole maps, before the classes are told
AUXILIARY = 0.4  # weight of the auxiliary head's loss
NOWHERE = -1


class Convolved(nn.Sequential):
    """A convolution, a batch norm and a ReLU follow one another."""

    def __init__(self, dim: int, out: int, size: int) -> None:
        convolution = nn.Conv2d(dim, out, size, padding=size // 2, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(out), nn.ReLU())


class Classifier(nn.Sequential):
    """Maps [B, dim, H, W] become scores [B, classes, H, W]."""

    def __init__(self, dim: int, classes: int) -> None:
        told = nn.Conv2d(dim, classes, 1)
        nn.init.normal_(told.weight, std=0.01)
        nn.init.zeros_(cast(Tensor, told.bias))
        super().__init__(nn.Dropout2d(DROPOUT), told)


class PerPixel(Segmenter):
    """A decoder turns the levels into scores [B, C, h, w]; it learns by the cross-entropy of all pixels that count.

    An FCN head on the last level but one learns beside it, and is not asked afterwards.
    """

    least = 2  # the batch norms of a pyramid's pooled cells see one value an image

    def __init__(self, info: BackboneInfo, levels: Levels, decoder: nn.Module, classes: int, width: int) -> None:
        super().__init__(info)
        self.levels, self.decoder = levels, decoder
        self.beside = max(0, len(levels.channels) - 2)
        self.auxiliary = nn.Sequential(Convolved(levels.channels[self.beside], width, 3), Classifier(width, classes))

    def losses(self, scenes: Sequence[SegmentScene]) -> dict[str, Tensor]:
        """Return the parts "pixels" and "auxiliary"."""
        maps = self.levels(self.images(scenes))
        wanted = torch.stack([scene.classes() for scene in scenes]).to(maps[0].device)
        return {
            "pixels": _cross_entropy(self.decoder(maps), wanted),
            "auxiliary": AUXILIARY * _cross_entropy(self.auxiliary(maps[self.beside]), wanted),
        }

    def segment(self, scenes: Sequence[SegmentScene]) -> list[Segmentation]:
        """Segment semantically."""
        scores = self.decoder(self.levels(self.images(scenes)))
        return [Segmentation(likeliest(own, scene)) for own, scene in zip(scores, scenes, strict=True)]

    def trunk(self) -> nn.Module:
        """Return the backbone."""
        return self.levels.body


def _cross_entropy(scores: Tensor, wanted: Tensor) -> Tensor:
    """Mean over the pixels that count; wanted: int64 [B, H, W], -1 for those that don't."""
    enlarged = enlarge(scores.float(), (wanted.shape[-2], wanted.shape[-1]))
    counted = (wanted != NOWHERE).sum().clamp(min=1)
    return F.cross_entropy(enlarged, wanted, ignore_index=NOWHERE, reduction="sum") / counted
