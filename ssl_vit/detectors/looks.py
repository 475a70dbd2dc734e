"""Where the queries of a detector look, for pictures: the attention of its last decoder layer to the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssl_vit.detectors.deformable_detr import DeformableDETR
from ssl_vit.detectors.detector import Predictions
from ssl_vit.detectors.detr import DETR


@torch.no_grad()
def looks(detector: DETR | DeformableDETR, images: Tensor, padding: Tensor) -> tuple[Predictions, Tensor]:
    """What is predicted, and for each query P places with how much each counts: [B, Q, P, 3].

    images: [B, 3, H, W] normalised; padding: bool [B, H, W]. A place is (x, y) as a share of the canvas and its weight;
    the weights of a query add up to 1. DETR looks at every cell of its map, Deformable DETR at a few points.
    """
    watched: Callable[..., tuple[Predictions, Tensor]] = _cells if isinstance(detector, DETR) else _points
    return watched(detector, images, padding)


def _cells(detector: DETR, images: Tensor, padding: Tensor) -> tuple[Predictions, Tensor]:
    seen: dict[str, Any] = {}

    def note_size(_: Any, __: Any, map_: Tensor) -> None:
        seen["size"] = map_.shape[-2:]

    def note_weights(attention: Any, args: Any, kwargs: Any, _: Any) -> None:
        seen["weights"] = attention.forward(*args, **{**kwargs, "need_weights": True})[1]  # [B, Q, N]

    attention = detector.transformer.decoder.layers[-1].get_submodule("multihead_attn")
    hooks = [
        detector.input_proj.register_forward_hook(note_size),
        attention.register_forward_hook(note_weights, with_kwargs=True),
    ]
    predictions = _watched(detector, images, padding, hooks)
    height, width = seen["size"]
    rows, columns = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    centres = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1).to(images)
    weights = seen["weights"]
    return predictions, torch.cat([centres.expand(*weights.shape, 2), weights[..., None]], -1)


def _points(detector: DeformableDETR, images: Tensor, padding: Tensor) -> tuple[Predictions, Tensor]:
    seen: dict[str, Tensor] = {}

    def note(attention: Any, args: Any, _: Any) -> None:
        query, reference, _, sizes, _ = args
        places, weights = attention.look(query, reference, sizes)  # [B, Q, heads, L, P, 2], [B, Q, heads, L, P]
        every = torch.cat([places, weights[..., None] / attention.heads], -1)
        seen["places"] = every.flatten(2, 4)

    attention = detector.transformer.decoder.layers[-1].get_submodule("cross_attn")
    predictions = _watched(detector, images, padding, [attention.register_forward_hook(note)])
    return predictions, seen["places"]


def _watched(detector: DETR | DeformableDETR, images: Tensor, padding: Tensor, hooks: list[Any]) -> Predictions:
    try:
        predictions: Predictions = detector(images, padding)
        return predictions
    finally:
        for hook in hooks:
            hook.remove()
