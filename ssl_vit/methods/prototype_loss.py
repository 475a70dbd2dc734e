"""DINO's last layer and its loss in one, with the gradient in closed form: logits exist for some images at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssl_vit.methods.heads import CELLS, Prototypes, through_norm, tiled_logits, tiles, working_type


def cross_view_loss(vectors: Tensor, prototypes: Prototypes, targets: Tensor, temp: float) -> Tensor:
    """Cross-entropy of every crop against every global crop but itself, averaged over pairs and images, [].

    vectors: in the head's bottleneck, [V, B, d], of which the first T crops are the global ones; targets: [T, B, K],
    rows that sum to one; temp: of the student's softmax (2104.14294).
    """
    value: Tensor = _CrossView.apply(vectors, prototypes.weight_v, prototypes.weight_g, targets, temp)
    return value


class _CrossView(torch.autograd.Function):
    """With s = (z · v) l / |v| / temp and the targets q of the n crops that a crop is compared with: the loss is
    -(sum of q) · log softmax(s), its gradient by s is n softmax(s) - sum of q.

    Gradients are made with the loss, while the logits are there, and before they are averaged, so that float16 holds
    them. The backward pass hands them over, so that no copy of what is as large as the prototypes is made.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, directions: Tensor, lengths: Tensor, targets: Tensor, temp: float) -> Tensor:
        (crops, images, _), teachers, count = vectors.shape, len(targets), len(directions)
        z, wanted = vectors.to(working_type(vectors)), any(ctx.needs_input_grad)
        norms = torch.linalg.vector_norm(directions, dim=1)
        scale = lengths.squeeze(1) / norms / temp
        others = torch.full((crops, 1, 1), float(teachers), device=z.device, dtype=scale.dtype)
        others[:teachers] -= 1
        total = scale.new_zeros(())
        step = max(1, CELLS // (crops * count))  # images whose logits exist at once
        of_vectors, of_lengths = torch.zeros_like(vectors, dtype=scale.dtype), torch.zeros_like(scale)
        of_directions = torch.empty_like(directions) if wanted else directions
        with torch.autocast(z.device.type, enabled=False):
            for start in range(0, images, step):
                part = slice(start, start + step)
                rows, q = z[:, part].flatten(0, 1), targets[:, part]
                logits, sum_q = tiled_logits(rows, directions, scale).view(crops, -1, count), q.sum(0)
                log_p = torch.log_softmax(logits, -1, out=logits)
                total += (log_p[:teachers] * q).sum() - (log_p.sum(0) * sum_q).sum()
                if not wanted:
                    continue
                g = log_p.exp_().mul_(others).sub_(sum_q)
                g[:teachers] += q
                g = g.flatten(0, 1)
                for tile in tiles(directions):
                    v, by = directions[tile], g[:, tile]
                    of_vectors[:, part] += ((by * scale[tile]).to(z.dtype) @ v.to(z.dtype)).view(crops, -1, v.shape[1])
                    straight, of_v = by.to(z.dtype).T @ rows, of_directions[tile]  # by v / |v| l / temp
                    of_v.copy_(straight) if start == 0 else of_v.add_(straight)
                    if part.stop >= images:
                        of_lengths[tile] = through_norm(of_v, v, norms[tile], scale[tile])
        ctx.pairs = float(teachers * crops - min(teachers, crops)) * images
        ctx.gradients = [of_vectors, of_directions, of_lengths / norms / temp]
        mean: Tensor = total / ctx.pairs
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        share, (vectors, directions, lengths) = grad / ctx.pairs, ctx.gradients
        del ctx.gradients
        return vectors * share, directions.mul_(share), (lengths * share)[:, None], None, None
