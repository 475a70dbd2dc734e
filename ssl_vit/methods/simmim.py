"""SimMIM: predict the pixels of hidden patches (2111.09886)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.backbones.backbone import Backbone, Features
from ssl_vit.data.masks import random_masks
from ssl_vit.methods.masked import Masked, linear, with_pooled
from ssl_vit.methods.method import Progress, Step
from ssl_vit.methods.simmim_config import Config
from ssl_vit.methods.targets import exact


class SimMIM(Masked):
    """From patches in sight, the normalised pixels of hidden squares, by one linear layer; the loss is L1."""

    config: Config

    def __init__(self, config: Config, backbone: Backbone, image_size: int) -> None:
        super().__init__(config, backbone, image_size)
        self.head = linear(backbone.info.patch_dim, 3 * self.cell**2)

    def draw_masks(self, images: int, height: int, width: int) -> Tensor:
        """Squares of a sixth of the image's side, bool [images, height, width]."""
        return random_masks(images, height, width, unit=max(1, round(height / 6)), ratio=self.config.mask_ratio)

    def forward(self, batch: list[Tensor], progress: Progress) -> Step:
        """Batch: one crop, [B, 3, S, S]."""
        (images,) = batch
        features, masks = self.see(images)
        made, hidden = self._made(features, images), self._hidden(masks, images)
        loss = ((made - images).abs() * hidden).sum() / hidden.sum() / 3
        with torch.no_grad():
            mean = (images * (1 - hidden)).sum((2, 3), keepdim=True) / (1 - hidden).sum((2, 3), keepdim=True)
            blind = ((mean - images).abs() * hidden).sum() / hidden.sum() / 3
        parts = {"blind_loss": blind, "hidden": hidden.mean()}
        return Step(with_pooled(loss, features.pooled), parts, features.pooled.detach())

    def drawn(self, images: Tensor) -> dict[str, Tensor]:
        """What is seen of images [N, 3, S, S], and what is painted for the rest."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            features, masks = self.see(images)
        made, hidden = self._made(features, images), self._hidden(masks, images)
        seen = images * (1 - hidden)
        return {"seen": seen, "painted": seen + made.to(images.dtype) * hidden}

    def _made(self, features: Features, images: Tensor) -> Tensor:
        """Predicted pixels of images [B, 3, S, S], from patches whose grid may reach beyond them."""
        made = F.pixel_shuffle(exact(self.head(features.patches.movedim(1, -1))).movedim(-1, 1), self.cell)
        return made[..., : images.shape[-2], : images.shape[-1]]

    def _hidden(self, masks: Tensor, images: Tensor) -> Tensor:
        """Masks [B, H, W] as ones and zeros for every pixel, [B, 1, S, S]."""
        cells = masks.repeat_interleave(self.cell, 1).repeat_interleave(self.cell, 2)
        return cells[:, None, : images.shape[-2], : images.shape[-1]].to(images, non_blocking=True)
