"""What BEiT, SimMIM and MAE share: one crop with hidden patches, and a prediction for what is hidden."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.backbones.backbone import Backbone, Features
from ssl_vit.data.plan import ViewPlan
from ssl_vit.methods.base_config import MaskedConfig
from ssl_vit.methods.method import Method


class Masked(Method):
    """A backbone that sees an image with holes; where it has no patch embedding, the pixels are hidden.

    The least that a prediction can cost which does not look at the image is measured at each step, as ``blind_loss``.
    """

    def __init__(self, config: MaskedConfig, backbone: Backbone, image_size: int) -> None:
        super().__init__()
        self.config, self.image_size, self.backbone = config, image_size, backbone
        self.grid = backbone.info.grid
        self.cell = -(-image_size // self.grid[0])  # pixels of a patch

    @staticmethod
    def begin(backbone: Backbone) -> None:
        """With sines for positions, or heads that look at neighbours where biases alone tell positions.

        What is hidden can only be told from where it is, and small random positions or biases hardly say that. On small
        sets this is the difference between features that get better and some that get worse.
        """
        backbone.place_patches(sine_positions(*backbone.info.grid, backbone.info.patch_dim), fixed=False)
        backbone.look_at_neighbours()

    def views(self) -> ViewPlan:
        """One crop."""
        return self.config.views(self.image_size)

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """The rows and columns of patches of images [B, 3, S, S], which may be smaller than at the run's end."""
        rows, columns = (-(-cells * images.shape[-1] // self.image_size) for cells in self.grid)
        return rows, columns

    def draw_masks(self, images: int, height: int, width: int) -> Tensor:
        """Masks bool [images, height, width] on the CPU, True = hidden, from torch's global generator."""
        raise NotImplementedError

    def see(self, images: Tensor) -> tuple[Features, Tensor]:
        """What the backbone gives for images [B, 3, S, S] under new masks bool [B, *grid], which stay on the CPU."""
        masks = self.draw_masks(len(images), *self.grid_of(images))
        return self.backbone(images, masks.to(images.device, non_blocking=True)), masks

    def exported(self) -> Backbone:
        """The one backbone that there is."""
        return self.backbone


def linear(dim: int, out: int) -> nn.Linear:
    """A prediction from a patch, as BEiT's begins (2106.08254)."""
    layer = nn.Linear(dim, out)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def hidden_rows(patches: Tensor, masks: Tensor) -> Tensor:
    """The hidden patches [M, D] of [B, D, H, W]; masks bool [B, H, W] on the CPU, so that no device waits for M."""
    places = masks.flatten().nonzero()[:, 0].to(patches.device, non_blocking=True)
    return patches.movedim(1, -1).flatten(0, 2)[places]


def with_pooled(loss: Tensor, pooled: Tensor) -> Tensor:
    """The same loss, which also reaches (with gradient zero) the weights that only pool, as DDP expects of all."""
    return loss + 0 * torch.nan_to_num(pooled).sum()


def sine_positions(height: int, width: int, dim: int) -> Tensor:
    """Sines and cosines of the column, then of the row, [height * width, dim]; the last of an odd dim stay 0."""
    frequencies = 10_000 ** -(torch.arange(dim // 4) / (dim // 4))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (columns, rows)]
    waves = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return F.pad(waves, (0, dim - waves.shape[1]))
