"""MAE: a masked autoencoder whose encoder never computes what is hidden (2111.06377)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.methods.mae_config import Config
from ssl_vit.methods.masked import Masked, sine_positions, with_pooled
from ssl_vit.methods.method import Progress, Step
from ssl_vit.methods.targets import exact


class MAE(Masked):
    """A plain transformer encodes a quarter of the patches; a small one paints the others from its tokens.

    Positions are fixed sines and cosines in both.
    """

    config: Config

    def __init__(self, config: Config, backbone: Backbone, image_size: int) -> None:
        super().__init__(config, backbone, image_size)
        dim, heads = config.decoder_dim, config.decoder_heads
        self.embed = nn.Linear(backbone.info.patch_dim, dim)
        self.mask_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.positions: Tensor  # [H * W, dim]
        self.register_buffer("positions", sine_positions(*self.grid, dim), persistent=False)
        blocks = [Block(dim, heads, qkv_bias=True) for _ in range(config.decoder_depth)]
        self.decoder = nn.Sequential(*blocks, nn.LayerNorm(dim))
        self.predict = nn.Linear(dim, 3 * self.cell**2)
        for layer in (self.embed, self.predict, *self.decoder.modules()):
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    @staticmethod
    def begin(backbone: Backbone) -> None:
        """With positions that are not learnt."""
        backbone.place_patches(sine_positions(*backbone.info.grid, backbone.info.patch_dim), fixed=True)

    def forward(self, batch: list[Tensor], progress: Progress) -> Step:
        """Batch: one crop, [B, 3, S, S]."""
        (images,) = batch
        rows, columns = self.grid_of(images)
        order = torch.rand(len(images), rows * columns).argsort(1).to(images.device, non_blocking=True)
        kept, hidden = torch.split(order, self._counts(rows * columns), dim=1)
        seen = self.backbone.visible(images, kept)
        positions = self._positions(rows, columns)
        drawn = exact(self.predict(self.decode(seen.prefix, seen.patches, kept, hidden, positions)))
        wanted = normalised(cut(images, self.cell).gather(1, hidden[..., None].expand(-1, -1, drawn.shape[-1])))
        loss = (drawn - wanted).square().mean()
        parts = {"blind_loss": wanted.square().mean()}  # of painting each patch in its mean colour
        return Step(with_pooled(loss, seen.pooled), parts, seen.pooled.detach())

    def drawn(self, images: Tensor) -> dict[str, Tensor]:
        """What is kept of images [N, 3, S, S], and what is painted for the rest, in each patch's own contrast."""
        rows, columns = grid = self.grid_of(images)
        generator = torch.Generator().manual_seed(0)
        order = torch.rand(len(images), rows * columns, generator=generator).argsort(1).to(images.device)
        kept, hidden = torch.split(order, self._counts(rows * columns), dim=1)
        seen, positions = self.backbone.visible(images, kept), self._positions(rows, columns)
        made = exact(self.predict(self.decode(seen.prefix, seen.patches, kept, hidden, positions)))
        patches = cut(images, self.cell)
        places = hidden[..., None].expand(-1, -1, made.shape[-1])
        var, mean = torch.var_mean(patches.gather(1, places), dim=-1, keepdim=True)
        painted = patches.scatter(1, places, (made * (var + 1e-6).sqrt() + mean).to(patches.dtype))
        empty = patches.scatter(1, places, torch.zeros_like(made, dtype=patches.dtype))
        return {
            "seen": put_together(empty, grid, self.cell),
            "painted": put_together(painted, grid, self.cell),
        }

    def decode(self, prefix: Tensor, patches: Tensor, kept: Tensor, hidden: Tensor, positions: Tensor) -> Tensor:
        """Decoded tokens [B, M, dim] of the hidden patches [B, M], from what is known of those kept [B, N, D].

        positions: of all patches, [H * W, dim].
        """
        known = self.embed(patches) + positions[kept]
        masks = self.mask_token.to(known.dtype) + positions[hidden].to(known.dtype)
        tokens: Tensor = self.decoder(torch.cat([self.embed(prefix), known, masks], dim=1))
        return tokens[:, -hidden.shape[1] :]

    def _positions(self, rows: int, columns: int) -> Tensor:
        """The decoder's, [rows * columns, dim]; of a smaller grid resized, as the backbone's are."""
        if (rows, columns) == self.grid:
            return self.positions
        table = self.positions.T.view(1, -1, *self.grid)
        return F.interpolate(table, (rows, columns), mode="bicubic", antialias=True).flatten(2)[0].T

    def _counts(self, patches: int) -> list[int]:
        """How many of so many patches are kept, and hidden."""
        kept = int(patches * (1 - self.config.mask_ratio))
        return [kept, patches - kept]


def cut(images: Tensor, patch: int) -> Tensor:
    """Images [B, 3, H * patch, W * patch] as patches [B, H * W, patch * patch * 3], counted row by row.

    >>> cut(torch.arange(12.0).view(1, 3, 2, 2), 2)
    tensor([[[ 0.,  4.,  8.,  1.,  5.,  9.,  2.,  6., 10.,  3.,  7., 11.]]])
    """
    cells = F.pixel_unshuffle(images, patch).flatten(2)  # [B, 3 * patch², H * W]
    return cells.view(len(images), 3, patch * patch, -1).permute(0, 3, 2, 1).flatten(2)


def put_together(patches: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """What :func:`cut` has cut: patches [B, H * W, patch * patch * 3] as images [B, 3, H * patch, W * patch].

    >>> images = torch.rand(2, 3, 4, 6)
    >>> torch.equal(put_together(cut(images, 2), (2, 3), 2), images)
    True
    """
    cells = patches.reshape(*patches.shape[:2], patch * patch, 3).permute(0, 3, 2, 1).flatten(1, 2)
    return F.pixel_shuffle(cells.reshape(*cells.shape[:2], *grid), patch)


def normalised(patches: Tensor) -> Tensor:
    """Each patch [..., D] less its mean, over its deviation (section 4.1)."""
    var, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (var + 1e-6).sqrt()
