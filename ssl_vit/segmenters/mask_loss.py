"""Queries are matched with segments one to one, and the matched pairs give the loss (MaskFormer, arXiv 2107.06278)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from ssl_vit.detectors.losses import Matches, class_loss, object_count, pairs_at_least_cost
from ssl_vit.segmenters.segmenter import enlarge

ALPHA = 0.25  # of the focal loss, with gamma 2


class MaskPredictions(NamedTuple):
    """A segmenter says this of B images with Q queries."""

    logits: Tensor  # [B, Q, C + 1], "nothing" last
    masks: Tensor  # [B, Q, h, w] logits
    earlier: tuple[tuple[Tensor, Tensor], ...] = ()  # (logits, masks) of the decoder layers before the last


class MaskTruth(NamedTuple):
    """The ground truth is the n segments of one image; all images of a batch have one size."""

    labels: Tensor  # int64 [n]
    masks: Tensor  # float32 [n, H, W], 0 and 1


@dataclass(frozen=True)
class MaskLoss:
    """The loss compares predictions with segments; the same weights price a pair when queries are matched.

    Classes by a softmax in which unmatched queries are "nothing", at a tenth of the weight; masks by the focal loss
    (arXiv 1708.02002, alpha 0.25, gamma 2) and by the dice loss.
    """

    class_weight: float = 1.0
    mask_weight: float = 20.0
    dice_weight: float = 1.0
    nothing: float = 0.1

    def __call__(self, predictions: MaskPredictions, targets: Sequence[MaskTruth]) -> dict[str, Tensor]:
        """Weighted parts, to be summed: "class", "mask" and "dice", over all decoder layers."""
        count = object_count([target.labels for target in targets], predictions.masks)
        layers = [(predictions.logits, predictions.masks), *predictions.earlier]
        said = [self._layer(logits.float(), masks.float(), targets, count) for logits, masks in layers]
        return {name: torch.stack([part[name] for part in said]).sum() for name in said[0]}

    def _layer(self, logits: Tensor, masks: Tensor, targets: Sequence[MaskTruth], count: Tensor) -> dict[str, Tensor]:
        pairs = self.match(logits, masks, targets)
        image = torch.cat([torch.full_like(query, i) for i, (query, _) in enumerate(pairs)])
        query = torch.cat([query for query, _ in pairs])
        labels = torch.cat([target.labels[own] for target, (_, own) in zip(targets, pairs, strict=True)])
        parts = {"class": self.class_weight * class_loss(logits, (image, query), labels, self.nothing)}
        if not len(query):
            return parts | {"mask": 0.0 * masks.sum(), "dice": 0.0 * masks.sum()}
        wanted = torch.cat([target.masks[own] for target, (_, own) in zip(targets, pairs, strict=True)])
        found = enlarge(masks[image, query][:, None], (wanted.shape[-2], wanted.shape[-1]))[:, 0]
        focal: Tensor = sigmoid_focal_loss(found, wanted, alpha=ALPHA, gamma=2.0, reduction="none")
        return parts | {
            "mask": self.mask_weight * focal.mean((1, 2)).sum() / count,
            "dice": self.dice_weight * _dice(found.sigmoid().flatten(1), wanted.flatten(1)).sum() / count,
        }

    @torch.no_grad()
    def match(self, logits: Tensor, masks: Tensor, targets: Sequence[MaskTruth]) -> list[Matches]:
        """Match each image's queries with its segments one to one at the least cost (Hungarian algorithm)."""
        costs = [self._costs(*image) for image in zip(logits, masks, targets, strict=True)]
        return pairs_at_least_cost(costs)

    def _costs(self, logits: Tensor, masks: Tensor, target: MaskTruth) -> Tensor:
        """[Q, n], the price of each pair of a query and a segment of one image, at the size of the predictions."""
        wanted = F.interpolate(target.masks[:, None], masks.shape[-2:], mode="nearest").flatten(1)
        raw = masks.flatten(1)
        p = raw.sigmoid()
        yes = ALPHA * (1 - p).square() * F.softplus(-raw)
        no = (1 - ALPHA) * p.square() * F.softplus(raw)
        focal = (yes @ wanted.mT + no @ (1 - wanted).mT) / raw.shape[1]
        dice = 1 - (2 * p @ wanted.mT + 1) / (p.sum(1)[:, None] + wanted.sum(1) + 1)
        named = -logits.softmax(-1)[:, target.labels]
        return self.class_weight * named + self.mask_weight * focal + self.dice_weight * dice


def _dice(found: Tensor, wanted: Tensor) -> Tensor:
    """Of pairs of masks [n, N] in [0, 1], [n]."""
    return 1 - (2 * (found * wanted).sum(1) + 1) / (found.sum(1) + wanted.sum(1) + 1)
