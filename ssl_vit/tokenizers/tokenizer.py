"""A tokenizer takes images and gives a word of a visual vocabulary for every patch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Grid = tuple[int, int]  # rows and columns of patches


class Tokenizer(nn.Module):
    """A tokenizer gives each patch the number of a visual word; it is frozen while a backbone learns to predict it.

    ``fit_steps`` says for how many steps it has first to be fitted on the user's images; 0 where it comes ready.
    """

    codes: int
    """Size of the vocabulary."""
    fit_steps: int = 0

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """mean, std: with which the images that come are normalised."""
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, grid: Grid) -> Tensor:
        """Turn normalised images [B, 3, S, S] into tokens int64 [B, *grid]."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Tokenizer:
        """Stay in evaluation mode: it is frozen while a backbone learns, and what is fitted needs no other."""
        return super().train(False)

    def learnt(self) -> list[nn.Parameter]:
        """Return the parameters that fitting trains."""
        return []

    def fit_loss(self, images: Tensor, grid: Grid) -> Tensor:
        """Compute the loss [] of one fitting step on normalised images [B, 3, S, S]."""
        raise NotImplementedError

    def picture(self, images: Tensor, grid: Grid) -> Tensor | None:
        """Draw what words keep of normalised images, in [0, 1] [B, 3, h, w]; None where that can't be seen."""
        return None

    def unit(self, images: Tensor) -> Tensor:
        """Turn normalised images [B, 3, S, S] back into pixels in [0, 1]."""
        return (images * self.std + self.mean).clamp(0, 1)
