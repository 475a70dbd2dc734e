"""The tokenizer contract: images in, a word of a visual vocabulary for every patch out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Grid = tuple[int, int]  # rows and columns of patches


class Tokenizer(nn.Module):
    """Gives each patch the number of a visual word; frozen while a backbone learns to predict it.

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
        """Normalised images [B, 3, S, S] to tokens int64 [B, *grid]."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Tokenizer:
        """Always in eval mode: it is frozen while a backbone learns, and what is fitted needs no other."""
        return super().train(False)

    def learnt(self) -> list[nn.Parameter]:
        """What fitting trains."""
        return []

    def fit_loss(self, images: Tensor, grid: Grid) -> Tensor:
        """The loss [] of one fitting step on normalised images [B, 3, S, S]."""
        raise NotImplementedError

    def picture(self, images: Tensor, grid: Grid) -> Tensor | None:
        """What words keep of normalised images, as pixels in [0, 1] [B, 3, h, w]; None where that can't be seen."""
        return None

    def unit(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, S, S] as pixels in [0, 1]."""
        return (images * self.std + self.mean).clamp(0, 1)
