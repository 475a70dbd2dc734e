"""MaskFormer predicts a set of masks, each with one class, for semantic and panoptic segmentation (2107.06278)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.data.segment_scenes import SegmentScene
from ssl_vit.detectors.detector import Mlp
from ssl_vit.detectors.detr import HEADS, TransformerDecoder
from ssl_vit.detectors.positions import sine_position_map
from ssl_vit.segmenters.levels import Levels
from ssl_vit.segmenters.mask_loss import MaskLoss, MaskPredictions, MaskTruth
from ssl_vit.segmenters.panoptic import merged
from ssl_vit.segmenters.segmenter import Segmentation, Segmenter, enlarge, likeliest, planes_of

GROUPS = 32  # of the group norms


class PixelDecoder(nn.Module):
    """A feature pyramid network with group norms makes one map of all levels: what the masks are read from."""

    def __init__(self, channels: Sequence[int], dim: int, mask_dim: int) -> None:
        super().__init__()
        *finer, coarsest = channels
        self.stem = _convolved(coarsest, dim)
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, dim, 1, bias=False), nn.GroupNorm(GROUPS, dim)) for width in reversed(finer)
        )
        self.blocks = nn.ModuleList(_convolved(dim, dim) for _ in finer)
        self.mask_features = nn.Conv2d(dim, mask_dim, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map levels [B, C_i, H_i, W_i], finest first, to [B, mask_dim, H_0, W_0]."""
        x = self.stem(maps[-1])
        for map_, lateral, block in zip(reversed(maps[:-1]), self.laterals, self.blocks, strict=True):
            x = block(lateral(map_) + F.interpolate(x, map_.shape[-2:], mode="nearest"))
        features: Tensor = self.mask_features(x)
        return features


def _convolved(dim: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(dim, out, 3, padding=1, bias=False), nn.GroupNorm(GROUPS, out), nn.ReLU())


class MaskFormer(Segmenter):
    """MaskFormer finds `queries` segments at most; the official sizes are the defaults.

    things: of each class, whether its segments are single objects; those of the others are joined. dim: of the queries
    and of all maps, a multiple of 32; hidden: width of the decoder's hidden layers.
    """

    finds_segments = True

    def __init__(
        self,
        backbone: AdaptedBackbone,
        things: Sequence[bool],
        *,
        queries: int = 100,
        depth: int = 6,
        dim: int = 256,
        hidden: int = 2048,
    ) -> None:
        super().__init__(backbone.info)
        self.things = tuple(things)
        self.levels = Levels(backbone, dim)
        coarsest = self.levels.channels[-1]
        self.pixel_decoder = PixelDecoder(self.levels.channels, dim, dim)
        self.input_proj: nn.Module = nn.Identity() if coarsest == dim else nn.Conv2d(coarsest, dim, 1)
        self.decoder = TransformerDecoder(depth, dim, HEADS, hidden)
        self.query_embed = nn.Embedding(queries, dim)
        self.class_embed = nn.Linear(dim, len(self.things) + 1)
        self.mask_embed = Mlp([dim, dim, dim, dim])
        self.loss = MaskLoss()
        for part in (self.decoder, self.input_proj, self.mask_embed):
            for parameter in part.parameters():
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)

    def forward(self, images: Tensor) -> MaskPredictions:
        """Predict a class and a mask for each query, after each layer; images: [B, 3, H, W] normalised."""
        maps = self.levels(images)
        features, map_ = self.pixel_decoder(maps), self.input_proj(maps[-1])
        nowhere = map_.new_zeros(map_.shape[0], *map_.shape[-2:], dtype=torch.bool)
        positions = sine_position_map(nowhere, map_.shape[1]).to(map_.dtype)
        queries = self.query_embed.weight.expand(map_.shape[0], -1, -1)
        seen = self.decoder(queries, map_.flatten(2).mT, positions.flatten(2).mT, nowhere.flatten(1))
        said = [(self.class_embed(x), torch.einsum("bqc,bchw->bqhw", self.mask_embed(x), features)) for x in seen]
        return MaskPredictions(*said[-1], tuple(said[:-1]))

    def losses(self, scenes: Sequence[SegmentScene]) -> dict[str, Tensor]:
        """Return the parts "class", "mask" and "dice", summed over the layers of the decoder."""
        device = next(self.parameters()).device
        return self.loss(self(self.images(scenes)), [_target(scene, device) for scene in scenes])

    def segment(self, scenes: Sequence[SegmentScene]) -> list[Segmentation]:
        """Segment semantically, and into segments."""
        predictions = self(self.images(scenes))
        found = []
        for logits, masks, scene in zip(predictions.logits, predictions.masks, scenes, strict=True):
            side = scene.segments.shape[0]
            wide = enlarge(masks[None], (side, side))[0].sigmoid()
            scores = torch.einsum("qc,qhw->chw", logits.softmax(-1)[:, :-1], wide)
            segments, labels = self._segments(logits, masks, scene)
            found.append(Segmentation(likeliest(scores, scene), segments, labels))
        return found

    def _segments(self, logits: Tensor, masks: Tensor, scene: SegmentScene) -> tuple[Tensor, Tensor]:
        """The segments of one image, int64 [H, W], and their classes [n]."""
        return merged(logits, lambda kept: (plane.sigmoid() for plane in planes_of(masks[kept], scene)), self.things)

    def trunk(self) -> nn.Module:
        """Return the backbone."""
        return self.levels.body


def _target(scene: SegmentScene, device: torch.device) -> MaskTruth:
    numbers = torch.arange(len(scene.labels))
    masks = scene.segments == numbers[:, None, None]
    return MaskTruth(scene.labels.to(device), masks.to(device, torch.float32))
