"""Attention in bfloat16 on a CPU: matrix products, as the backward of torch's fused kernel is several times slower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CELLS = 1 << 19  # weights that exist at once: what a core keeps in its own cache


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention` with its arguments: [B, H, N, d], [B, H, M, d] twice, to [B, H, N, d].

    In autocast's type. What has another shape, drops weights or is causal is left to torch.
    """
    tensors = [query, key, value]
    if torch.is_autocast_enabled("cpu"):
        tensors = [each.to(torch.get_autocast_dtype("cpu")) for each in tensors]
    if dropout_p or is_causal or enable_gqa or any(each.ndim != 4 or len(each) != len(query) for each in tensors):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros(attn_mask.shape, dtype=tensors[0].dtype).masked_fill_(~attn_mask, float("-inf"))
    if attn_mask is not None:
        attn_mask = attn_mask[(None,) * (4 - attn_mask.ndim)]
    out: Tensor = _Attend.apply(*tensors, attn_mask, query.shape[-1] ** -0.5 if scale is None else scale)
    return out


class _Attend(torch.autograd.Function):
    """Weights are made for some images at a time, and again in backward: as quick as keeping them, and smaller.

    Weights of few tokens, which are no larger than queries, keys and values, are kept.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        kept, keeps = [], k.shape[-2] <= 3 * k.shape[-1]
        out = v.new_empty(len(q), q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)  # as the next layer reads it
        with torch.autocast("cpu", enabled=False):
            for some in _parts(q, k):
                weights = _weights(q[some] * scale, k[some], mask, some)
                out[some] = weights @ v[some]
                if keeps:
                    kept.append(weights)
        ctx.save_for_backward(q, k, v, mask, torch.cat(kept) if keeps else None)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, kept = ctx.saved_tensors
        of_mask = None
        if ctx.needs_input_grad[3]:
            of_mask = torch.zeros(mask.shape, dtype=torch.promote_types(mask.dtype, torch.float32))
        found = []
        for some in _parts(q, k):
            scaled = q[some] * ctx.scale
            weights = _weights(scaled, k[some], mask, some) if kept is None else kept[some]
            of_weights = grad[some] @ v[some].mT
            # what autograd itself calls: sums in float32, where w * (g - (w * g).sum()) would round each
            of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_q = (of_scores @ k[some]).mul_(ctx.scale)
            found.append((of_q, of_scores.mT @ scaled, weights.mT @ grad[some]))
            if of_mask is not None:
                part = of_mask[some] if len(of_mask) > 1 else of_mask
                part += of_scores.to(of_mask.dtype).sum_to_size(part.shape)
        return *_joined(found), None if of_mask is None else of_mask.to(mask.dtype), None


def _joined(found: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    return [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*found, strict=True)]


def _parts(q: Tensor, k: Tensor) -> list[slice]:
    images = max(1, CELLS // max(1, q.shape[1] * q.shape[2] * k.shape[2]))
    return [slice(start, start + images) for start in range(0, len(q), images)]


def _weights(scaled: Tensor, k: Tensor, mask: Tensor | None, some: slice) -> Tensor:
    scores = scaled @ k.mT
    if mask is not None:
        scores += mask[some] if len(mask) > 1 else mask
    return torch.softmax(scores, -1, out=scores)
