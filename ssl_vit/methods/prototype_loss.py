"""DINO's last layer and its loss in one, with the gradient in closed form: logits exist for some images at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssl_vit.methods.heads import CELLS, Prototypes
from ssl_vit.methods.targets import exact


def cross_view_loss(vectors: Tensor, prototypes: Prototypes, targets: Tensor, temp: float) -> Tensor:
    """Cross-entropy of every crop against every global crop but itself, averaged over pairs and images, [].

    vectors: in the head's bottleneck, [V, B, d], of which the first T crops are the global ones; targets: [T, B, K],
    rows that sum to one; temp: of the student's softmax (2104.14294).
    """
    value: Tensor = _CrossView.apply(vectors, prototypes.weight_v, prototypes.lengths(), targets, temp)
    return value


class _CrossView(torch.autograd.Function):
    """With s = (z · v) l / temp and the targets q of a crop: n logsumexp(s) - (sum of q) · s; gradient n p - sum of q.

    n is the number of global crops that a crop is compared with. Gradients are made with the loss, while the logits are
    there, and before they are averaged, so that float16 holds them.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, directions: Tensor, lengths: Tensor, targets: Tensor, temp: float) -> Tensor:
        (crops, images, _), teachers, count = vectors.shape, len(targets), len(directions)
        device = vectors.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else vectors.dtype
        z, v, scale = vectors.to(kind), directions.to(kind), exact(lengths) / temp
        others = torch.full((crops, 1, 1), float(teachers), device=vectors.device, dtype=scale.dtype)
        others[:teachers] -= 1
        total, wanted = scale.new_zeros(()), any(ctx.needs_input_grad)
        step = max(1, CELLS // (crops * count))  # images whose logits exist at once
        of_vectors, of_directions, of_scale = torch.empty_like(vectors), None, torch.zeros_like(scale)
        with torch.autocast(device, enabled=False):
            for start in range(0, images, step):
                part = slice(start, start + step)
                rows, q = z[:, part].flatten(0, 1), targets[:, part]
                raw = exact(rows @ v.T)
                s, sum_q = (raw * scale).view(crops, -1, count), q.sum(0)
                normaliser = s.logsumexp(-1, keepdim=True)
                total += (others * normaliser).sum() - (s.sum(0) * sum_q).sum() + (s[:teachers] * q).sum()
                if wanted:
                    g = s.sub_(normaliser - others.log()).exp_().sub_(sum_q)
                    g[:teachers] += q
                    g = g.flatten(0, 1)
                    of_scale += torch.einsum("nk,nk->k", g, raw)
                    g = g.mul_(scale).to(kind)
                    of_vectors[:, part] = (g @ v).view(crops, -1, v.shape[1])
                    now = (g.T @ rows).to(directions.dtype)
                    of_directions = now if of_directions is None else of_directions.add_(now)
        ctx.pairs = float(teachers * crops - min(teachers, crops)) * images
        ctx.save_for_backward(of_vectors, of_directions, of_scale / temp)
        mean: Tensor = total / ctx.pairs
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        share = grad / ctx.pairs
        vectors, directions, lengths = ctx.saved_tensors
        return vectors * share, directions.mul_(share), lengths * share, None, None  # in place: it is as large as they
