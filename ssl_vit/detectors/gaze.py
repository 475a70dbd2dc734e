"""The attention of a detector's last decoder layer shows where its queries look."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssl_vit.detectors.deformable_attention import DeformableAttention
from ssl_vit.detectors.detector import Predictions
from ssl_vit.detectors.detr import DETR
from ssl_vit.detectors.networks import Pretrainable


class Gaze(NamedTuple):
    """The Q queries look at these places in B images, and say this; places are shares of the image, (x, y)."""

    points: Tensor  # [B, Q, P, 2]
    weights: Tensor  # [B, Q, P], a sum of 1 for each query
    grid: tuple[int, int] | None  # rows and columns of the points where they are all the cells of a map (DETR)
    predictions: Predictions


@torch.no_grad()
def gaze(detector: Pretrainable, images: Tensor, padding: Tensor | None = None) -> Gaze:
    """Return the mean attention over heads; of a Deformable DETR the points that were sampled, on all maps.

    images: [B, 3, H, W] normalised; padding: bool [B, H, W], True beside the image, with which places are shares of
    the whole canvas; the detector in evaluation mode, as dropout hides a part of what it looks at.
    """
    name = "multihead_attn" if isinstance(detector, DETR) else "cross_attn"
    attention = detector.transformer.decoder.layers[-1].get_submodule(name)
    asked: list[tuple[Any, ...]] = []

    def listen(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        asked.append((*given, named.get("key_padding_mask")))

    handle = attention.register_forward_pre_hook(listen, with_kwargs=True)
    try:
        predictions = detector(images, padding)
    finally:
        handle.remove()
    if isinstance(attention, DeformableAttention):
        query, reference, _, sizes, *_ = asked[0]
        points, weights = attention.look(query, reference, sizes)
        return Gaze(points.flatten(2, 4), weights.flatten(2) / attention.heads, None, predictions)
    query, keys, values, padding = asked[0]
    _, weights = attention(query, keys, values, key_padding_mask=padding)
    rows, columns = detector.backbone.pyramid(images)[-1].shape[-2:]
    return Gaze(_centres(rows, columns).to(weights).expand(*weights.shape, 2), weights, (rows, columns), predictions)


def _centres(rows: int, columns: int) -> Tensor:
    """[rows * columns, 2], row by row."""
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def surest(predictions: Predictions, focal: bool, count: int) -> Tensor:
    """Choose the queries that are surest that there is an object, [B, count], the surest first."""
    logits = predictions.logits
    likely = logits.sigmoid() if focal else logits.softmax(-1)[..., :-1]
    return likely.amax(-1).topk(min(count, logits.shape[1]), dim=1).indices
