"""The last layer and the loss on patches in one, its gradient in closed form: logits exist for some rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssl_vit.methods.heads import CELLS, Prototypes, through_norm, tiled_logits, tiles, working_type
from ssl_vit.methods.targets import exact


def dense_loss(
    vectors: Tensor,
    shares: Tensor,
    learnt: Tensor,
    targets: Callable[[slice], Tensor],
    prototypes: Prototypes,
    temp: float,
) -> Tensor:
    """Sum of shares times cross-entropies, [].

    The cross-entropy of targets q and logits W z over a temperature is logsumexp(W z) - q · W z. The second term is
    linear in z: what learns from the same targets is added up first.

    vectors: in the student's bottleneck, [N, d]; shares: of each in the loss, [N]; learnt: for each of M targets the
    sum of the vectors that learn from it, times their shares there, [M, d]; targets: gives the rows asked for of
    [M, K], which sum to one; temp: of the student's softmax.
    """
    weights = prototypes.weight_v, prototypes.weight_g
    value: Tensor = _Dense.apply(
        exact(vectors), exact(learnt), *weights, exact(shares), targets, temp, working_type(vectors)
    )
    return value


class _Dense(torch.autograd.Function):
    """With logits s of the vectors and r of the sums: shares · logsumexp(s) - q · r; gradients shares softmax(s), -q.

    They are made with the loss, so that no logits are kept or computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        vectors: Tensor,
        learnt: Tensor,
        directions: Tensor,
        lengths: Tensor,
        shares: Tensor,
        targets: Callable[[slice], Tensor],
        temp: float,
        kind: torch.dtype,
    ) -> Tensor:
        norms = torch.linalg.vector_norm(directions, dim=1)
        scale = lengths.squeeze(1) / norms / temp
        of_vectors, of_learnt, of_directions = (torch.zeros_like(x) for x in (vectors, learnt, directions))

        def pull(g: Tensor, rows: Tensor, of_rows: Tensor) -> None:
            """Add to gradients, from those of logits [n, K] of rows [n, d]."""
            for tile in tiles(directions):
                by = g[:, tile]
                of_rows += (by * scale[tile]).to(kind) @ directions[tile].to(kind)
                of_directions[tile] += by.to(kind).T @ rows.to(kind)

        total: Tensor = scale.new_zeros(())
        step = max(1, CELLS // len(directions))  # rows whose logits exist at once
        for start in range(0, len(vectors), step):
            part = slice(start, start + step)
            s, share = tiled_logits(vectors[part].to(kind), directions, scale), shares[part, None]
            largest = s.amax(1, keepdim=True)
            p = s.sub_(largest).exp_()
            mass = p.sum(1, keepdim=True)
            total += (share * (largest + mass.log())).sum()
            pull(p.mul_(share / mass), vectors[part], of_vectors[part])
        for start in range(0, len(learnt), step):
            part = slice(start, start + step)
            pull(targets(part).neg_(), learnt[part], of_learnt[part])
        total += (of_learnt * learnt).sum()
        of_lengths = torch.zeros_like(scale)
        for tile in tiles(directions):
            of_lengths[tile] = through_norm(of_directions[tile], directions[tile], norms[tile], scale[tile])
        ctx.gradients = [of_vectors, of_learnt, of_directions, of_lengths / norms / temp]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        vectors, learnt, directions, lengths = ctx.gradients
        del ctx.gradients
        return vectors * grad, learnt * grad, directions.mul_(grad), (lengths * grad)[:, None], None, None, None, None
