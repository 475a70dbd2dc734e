"""Queries are matched with objects one to one, and the matched pairs give the loss (DETR, arXiv 2005.12872)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from ssl_vit.detectors.detector import Predictions
from ssl_vit.errors import UserError

Matches = tuple[Tensor, Tensor]  # int64 [n] queries, int64 [n] the objects that they are matched with


class GroundTruth(NamedTuple):
    """The ground truth is the n objects of one image."""

    boxes: Tensor  # [n, 4] (centre x, centre y, width, height) in [0, 1]
    labels: Tensor  # int64 [n]
    embeddings: Tensor | None = None  # [n, E]


@dataclass(frozen=True)
class SetLoss:
    """The loss compares a detector's predictions with objects; the same weights price a pair when queries are matched.

    focal: classes by sigmoids and the focal loss (arXiv 1708.02002, alpha 0.25, gamma 2), else by a softmax in which
    unmatched queries are "nothing", at a tenth of the weight. class_weight: 1 in DETR and YOLOS, 2 in Deformable DETR.
    """

    focal: bool
    class_weight: float
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    embedding_weight: float = 1.0
    nothing: float = 0.1

    @classmethod
    def of(cls, focal: bool) -> SetLoss:
        """Make the loss with the official weights."""
        return cls(focal, class_weight=2.0 if focal else 1.0)

    def __call__(
        self, predictions: Predictions, targets: Sequence[GroundTruth], last: list[Matches] | None = None
    ) -> dict[str, Tensor]:
        """Weighted parts, to be summed: "class", "l1" and "giou" over all decoder layers, "embedding" of the last.

        last: the matching of the last layer, where it is known already.
        """
        count = object_count([target.labels for target in targets], predictions.boxes)
        layers = [(predictions.logits, predictions.boxes), *predictions.earlier]
        if last is None:
            last = self.match(*layers[0], targets)
        matched = [last, *(self.match(logits, boxes, targets) for logits, boxes in layers[1:])]
        said = [
            self._layer(logits, boxes, targets, pairs, count)
            for (logits, boxes), pairs in zip(layers, matched, strict=True)
        ]
        parts = {name: torch.stack([part[name] for part in said]).sum() for name in said[0]}
        if predictions.embeddings is not None:
            apart = _embedding_loss(predictions.embeddings, targets, last, count)
            parts["embedding"] = self.embedding_weight * apart
        return parts

    def _layer(
        self, logits: Tensor, boxes: Tensor, targets: Sequence[GroundTruth], pairs: list[Matches], count: Tensor
    ) -> dict[str, Tensor]:
        logits, boxes = logits.float(), boxes.float()
        image = torch.cat([torch.full_like(query, i) for i, (query, _) in enumerate(pairs)])
        query = torch.cat([query for query, _ in pairs])
        labels = torch.cat([target.labels[own] for target, (_, own) in zip(targets, pairs, strict=True)])
        wanted = torch.cat([target.boxes[own] for target, (_, own) in zip(targets, pairs, strict=True)]).float()
        found = boxes[image, query]
        overlap = generalized_box_iou_loss(_corners(found), _corners(wanted), reduction="sum")
        return {
            "class": self.class_weight * self._class_loss(logits, (image, query), labels, count),
            "l1": self.l1_weight * (found - wanted).abs().sum() / count,
            "giou": self.giou_weight * overlap / count,
        }

    def _class_loss(self, logits: Tensor, place: tuple[Tensor, Tensor], labels: Tensor, count: Tensor) -> Tensor:
        if self.focal:
            wanted = torch.zeros_like(logits)
            wanted[(*place, labels)] = 1.0
            loss: Tensor = sigmoid_focal_loss(logits, wanted, reduction="sum") / count
            return loss
        return class_loss(logits, place, labels, self.nothing)

    @torch.no_grad()
    def match(self, logits: Tensor, boxes: Tensor, targets: Sequence[GroundTruth]) -> list[Matches]:
        """Match each image's queries with its objects one to one at the least cost (Hungarian algorithm)."""
        costs = [self._costs(*image) for image in zip(logits.float(), boxes.float(), targets, strict=True)]
        return pairs_at_least_cost(costs)

    def _costs(self, logits: Tensor, boxes: Tensor, target: GroundTruth) -> Tensor:
        """[Q, n], the price of each pair of a query and an object of one image."""
        wanted = target.boxes.float()
        overlap: Tensor = generalized_box_iou(_corners(boxes), _corners(wanted))
        cost = self._class_cost(logits)[:, target.labels] * self.class_weight
        return cost + self.l1_weight * torch.cdist(boxes, wanted, p=1) - self.giou_weight * overlap

    def _class_cost(self, logits: Tensor) -> Tensor:
        """[Q, C], what it costs to take a query for an object of each class."""
        if not self.focal:
            return -logits.softmax(-1)
        p = logits.sigmoid()
        yes = 0.25 * (1 - p).square() * -(p + 1e-8).log()
        no = 0.75 * p.square() * -(1 - p + 1e-8).log()
        return yes - no


def class_loss(logits: Tensor, place: tuple[Tensor, Tensor], labels: Tensor, nothing: float) -> Tensor:
    """The cross-entropy of queries [B, Q, C + 1], whose last class is "nothing", which counts by the weight `nothing`.

    place: images and queries, int64 [n] each, that have the `labels` [n]; all others have nothing.
    """
    last = logits.shape[-1] - 1
    classes = torch.full(logits.shape[:2], last, device=logits.device)
    classes[place] = labels
    weight = torch.ones(last + 1, device=logits.device)
    weight[last] = nothing
    return F.cross_entropy(logits.flatten(0, 1), classes.flatten(), weight)


def pairs_at_least_cost(costs: Sequence[Tensor]) -> list[Matches]:
    """Match the queries of each image with its objects, by the costs [Q, n] of its pairs (Hungarian algorithm)."""
    solve = solver()
    # All at once, as the device is waited for. A network that has diverged is the trainer's to name, by its loss:
    # here any matching does.
    prices = torch.cat([cost.flatten() for cost in costs]).nan_to_num(0.0).cpu()
    pairs = []
    for cost, price in zip(costs, torch.split(prices, [cost.numel() for cost in costs]), strict=True):
        query, own = solve(price.view(cost.shape).numpy())
        pairs.append((torch.as_tensor(query, device=cost.device), torch.as_tensor(own, device=cost.device)))
    return pairs


def solver() -> Any:
    """Return scipy's solver of assignments; UserError where it is not installed."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise UserError("matching boxes needs the package scipy; pip install 'ssl_vit[detection]'") from None
    return linear_sum_assignment


def _corners(boxes: Tensor) -> Tensor:
    corners: Tensor = box_convert(boxes, "cxcywh", "xyxy")
    return corners


def object_count(labels: Sequence[Tensor], like: Tensor) -> Tensor:
    """Objects a process has on average, at least one: gradients are averaged over the processes too."""
    count = torch.tensor(float(sum(map(len, labels))), device=like.device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return count.clamp(min=1)


def _embedding_loss(embeddings: Tensor, targets: Sequence[GroundTruth], pairs: list[Matches], count: Tensor) -> Tensor:
    """DETReg's (arXiv 2106.04550): mean absolute difference over the matched queries."""
    apart = []
    for own, target, (query, index) in zip(embeddings.float(), targets, pairs, strict=True):
        if target.embeddings is None:
            raise ValueError("the detector embeds its objects, but a target has no embeddings")
        apart.append((own[query] - target.embeddings[index].float()).abs().mean(1))
    return torch.cat(apart).sum() / count
