"""The vocabulary is learnt from the user's own images: a small VQ-VAE (1711.00937), or BEiT v2's VQ-KD (2208.06366).

Both encode the image into one vector a patch, replace it by the nearest entry of a codebook, and decode: VQ-VAE the
pixels, VQ-KD what a frozen teacher says of the patch. Entries and vectors have unit length, entries are moving
averages, and those that no patch chooses begin anew at a patch of the batch, so that the vocabulary is in use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.tokenizers.tokenizer import Grid, Tokenizer

WORD = 32  # length of a codebook entry (VQ-KD: 32)
COMMITMENT = 0.25  # weight of the encoder's pull to its entry (VQ-VAE: 0.25)
DECAY = 0.97  # of the moving averages (VQ-VAE and VQ-KD: 0.99, over many more steps)
IDLE = 0.5  # of its fair share: an entry chosen less often than that begins anew; with less, most words are rare
LARGEST = 8  # pixels of a patch that the encoder sees; larger patches are shrunk to that, as for DALL-E's


class Codebook(nn.Module):
    """The codebook holds K unit vectors that follow the vectors assigned to them; all state is in buffers."""

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.words: Tensor  # [K, D]
        self.share: Tensor  # [K] running share of the patches that chose each
        self.register_buffer("words", F.normalize(torch.randn(codes, dim), dim=1))
        self.register_buffer("share", torch.zeros(codes))  # so that all begin at patches of the first batch

    def forward(self, vectors: Tensor) -> Tensor:
        """Find the number of the nearest entry, int64 [N], for unit vectors [N, D]."""
        return (vectors @ self.words.T).argmax(1)

    @torch.no_grad()
    def follow(self, vectors: Tensor, chosen: Tensor) -> None:
        """Move the averages by one step, for vectors [N, D] and what they chose [N]; idle entries jump to vectors."""
        codes = len(self.words)
        sums = torch.zeros_like(self.words).index_add_(0, chosen, vectors)
        counts = torch.bincount(chosen, minlength=codes).to(self.share.dtype)
        self.share.lerp_(counts / len(chosen), 1 - DECAY)
        means = F.normalize(sums, dim=1)
        moved = F.normalize(self.words.lerp(means, 1 - DECAY), dim=1)
        self.words.copy_(torch.where(counts[:, None] > 0, moved, self.words))
        idle = (self.share < IDLE / codes).nonzero()[:, 0]
        taken = torch.randint(len(vectors), (len(idle),)).to(vectors.device)
        self.words[idle] = vectors[taken]
        self.share[idle] = 1 / codes


class VQ(Tokenizer):
    """The codebook stands between a small convolutional encoder and a decoder."""

    def __init__(
        self,
        codes: int,
        stride: int,
        fit_steps: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        width: int = 64,
        teacher: Backbone | None = None,
    ) -> None:
        """stride: pixels of a patch; teacher: whose patch features are decoded instead of pixels, kept frozen."""
        super().__init__(mean, std)
        self.codes, self.fit_steps = codes, fit_steps
        halvings = min(int(math.log2(LARGEST)), int(math.log2(stride)))
        self.cell = 2**halvings
        self.encoder = nn.Sequential(*_down(width, halvings), *_blocks(width), nn.Conv2d(width, WORD, 1))
        self.codebook = Codebook(codes, WORD)
        if teacher is None:
            self.decoder = nn.Sequential(nn.Conv2d(WORD, width, 1), *_blocks(width), *_up(width, halvings))
        else:
            self.decoder = nn.Sequential(
                nn.Conv2d(WORD, width, 1), *_blocks(width), nn.Conv2d(width, teacher.info.patch_dim, 1)
            )
        self.requires_grad_(False)
        self.teacher = teacher.requires_grad_(False) if teacher is not None else None

    def forward(self, images: Tensor, grid: Grid) -> Tensor:
        """Turn normalised images [B, 3, S, S] into tokens int64 [B, *grid]."""
        vectors = self._encode(self._sized(images, grid))
        words: Tensor = self.codebook(vectors.flatten(0, 2))
        return words.view(vectors.shape[:3])

    def learnt(self) -> list[nn.Parameter]:
        """Return the parameters of encoder and decoder; the codebook follows them by itself."""
        return [*self.encoder.parameters(), *self.decoder.parameters()]

    def fit_loss(self, images: Tensor, grid: Grid) -> Tensor:
        """Compute the loss of decoding normalised images [B, 3, S, S], and of commitment; the codebook moves."""
        sized = self._sized(images, grid)
        vectors = self._encode(sized)
        flat = vectors.flatten(0, 2)
        with torch.no_grad():
            chosen = self.codebook(flat)
        words = self.codebook.words[chosen].view_as(vectors)
        commitment = (vectors - words).square().sum(-1).mean()
        passed = vectors + (words - vectors).detach()  # the decoder sees the word, the gradient goes past it
        self.codebook.follow(flat.detach(), chosen)
        decoded = self.decoder(passed.movedim(-1, 1))
        return self._distance(decoded, images, sized) + COMMITMENT * commitment

    def picture(self, images: Tensor, grid: Grid) -> Tensor | None:
        """Decode the words to pixels in [0, 1] [B, 3, h, w]; None where a teacher's features are decoded."""
        if self.teacher is not None:
            return None
        words = self.codebook.words[self(images, grid)]
        return self.unit(self.decoder(words.movedim(-1, 1)))

    def _sized(self, images: Tensor, grid: Grid) -> Tensor:
        """The image at ``cell`` pixels a patch."""
        size = (self.cell * grid[0], self.cell * grid[1])
        if tuple(images.shape[-2:]) == size:
            return images
        return F.interpolate(images, size, mode="bilinear", antialias=True)

    def _encode(self, sized: Tensor) -> Tensor:
        """One unit vector a patch, [B, h, w, WORD]."""
        return F.normalize(self.encoder(sized).movedim(1, -1), dim=-1)

    def _distance(self, decoded: Tensor, images: Tensor, sized: Tensor) -> Tensor:
        """Squared, of pixels; of a teacher's features, one less the cosine."""
        if self.teacher is None:
            return F.mse_loss(decoded, sized)
        info = self.teacher.info
        mean, std = (images.new_tensor(colour).view(3, 1, 1) for colour in (info.mean, info.std))
        pixels = F.interpolate(self.unit(images), info.size, mode="bicubic", antialias=True)
        with torch.no_grad():
            seen = self.teacher((pixels - mean) / std).patches
        seen = F.interpolate(seen, decoded.shape[-2:], mode="bilinear", antialias=True)
        return 1 - F.cosine_similarity(decoded, seen, dim=1).mean()


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        first, second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)
        self.layers = nn.Sequential(nn.GroupNorm(8, width), nn.GELU(), first, nn.GELU(), second)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


def _blocks(width: int) -> list[nn.Module]:
    return [_Residual(width), _Residual(width), nn.GroupNorm(8, width), nn.GELU()]


def _down(width: int, halvings: int) -> list[nn.Module]:
    """From pixels to ``width`` channels, each layer halving the resolution; the first, on many pixels, are narrow."""
    if not halvings:
        return [nn.Conv2d(3, width, 3, padding=1)]
    widths = [3, *(width >> i for i in reversed(range(halvings)))]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.GELU()]
    return layers[:-1]


def _up(width: int, doublings: int) -> list[nn.Module]:
    """From ``width`` channels to pixels, the way back."""
    layers: list[nn.Module] = []
    for i in range(doublings):
        layers += [nn.ConvTranspose2d(width >> i, width >> (i + 1), 4, 2, 1), nn.GELU()]
    return [*layers, nn.Conv2d(width >> doublings, 3, 3, padding=1)]
