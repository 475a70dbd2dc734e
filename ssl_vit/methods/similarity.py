"""What distillation compares: distributions over similarities to a teacher's vectors, and whole relation maps."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.methods.targets import exact


class Told(NamedTuple):
    """How far a student's similarities are from the teacher's."""

    loss: Tensor  # [] the mean Kullback-Leibler divergence
    blind: Tensor  # [] that of the best guess that does not look at the image; 0 where there is one image alone


def rows_of(patches: Tensor) -> Tensor:
    """[B, D, H, W] to [B, H * W, D]."""
    return patches.flatten(2).mT


def units(x: Tensor) -> Tensor:
    """Vectors of length one, [..., D], in at least float32."""
    return F.normalize(exact(x), dim=-1)


def on_grid(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches [B, D, h, w] as they are on another grid: averaged where it is coarser, interpolated where finer."""
    if (patches.shape[-2], patches.shape[-1]) == grid:
        return patches
    return F.interpolate(exact(patches), grid, mode="bilinear", antialias=True)


def told_apart(student: Tensor, teacher: Tensor, anchors: Tensor, temp: float) -> Told:
    """Compare the similarities of unit vectors [B, ..., D] to anchors [..., K, D], as distributions over the K.

    The divergence of the student's softmax from the teacher's, at one temperature, is averaged over all vectors. The
    blind guess is, of each place, the mean over images of the teacher's distributions.
    """
    with torch.autocast(student.device.type, enabled=False):
        wanted = torch.log_softmax(teacher @ anchors.mT / temp, dim=-1).detach()
        said = torch.log_softmax(student @ anchors.mT / temp, dim=-1)
        shares = wanted.exp()
        loss = (shares * (wanted - said)).sum(-1).mean()
        guess = shares.mean(0, keepdim=True)
        blind = (shares * (wanted - guess.clamp_min(torch.finfo(guess.dtype).tiny).log())).sum(-1).mean()
    return Told(loss, blind)


def relation_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference [] of relation maps X Xᵀ of unit vectors [..., N, D] and [..., N, E].

    Where there are more vectors than channels the maps [N, N] are never made: |S Sᵀ - T Tᵀ|² is
    |Sᵀ S|² + |Tᵀ T|² - 2 |Sᵀ T|², of maps [D, D], [E, E] and [D, E].

    >>> x = torch.eye(3)[:2]
    >>> float(relation_gap(x, torch.tensor([[1.0], [1.0]])))  # two of four relations are 1 instead of 0
    0.5
    """
    count, widths = student.shape[-2], (student.shape[-1], teacher.shape[-1])
    with torch.autocast(student.device.type, enabled=False):
        if count <= max(widths):
            return (student @ student.mT - teacher @ teacher.mT).square().mean()
        own, other, both = student.mT @ student, teacher.mT @ teacher, student.mT @ teacher
        squares = own.square().sum((-2, -1)) + other.square().sum((-2, -1)) - 2 * both.square().sum((-2, -1))
        return squares.mean() / count**2


def enqueue(queue: Tensor, vectors: Tensor, step: int) -> None:
    """Write the vectors [B, D] of a step over the oldest of a queue [K, D]; the place follows from the step alone.

    >>> queue = torch.zeros(3, 1)
    >>> for step in range(2):
    ...     enqueue(queue, torch.full((2, 1), float(step + 1)), step)
    >>> queue.flatten().tolist()
    [2.0, 1.0, 2.0]
    """
    places = torch.arange(step * len(vectors), (step + 1) * len(vectors), device=queue.device)[-len(queue) :]
    queue[places % len(queue)] = vectors[-len(queue) :].to(queue.dtype)
