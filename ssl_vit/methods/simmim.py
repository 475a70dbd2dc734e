"""SimMIM: predict the pixels of hidden patches (2111.09886)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.backbones.backbone import Backbone
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
        drawn = F.pixel_shuffle(exact(self.head(features.patches.movedim(1, -1))).movedim(-1, 1), self.cell)
        drawn = drawn[..., : images.shape[-2], : images.shape[-1]]  # of a grid that reaches beyond the image
        cells = masks.repeat_interleave(self.cell, 1).repeat_interleave(self.cell, 2)
        hidden = cells[:, None, : images.shape[-2], : images.shape[-1]].to(drawn, non_blocking=True)
        loss = ((drawn - images).abs() * hidden).sum() / hidden.sum() / 3
        with torch.no_grad():
            mean = (images * (1 - hidden)).sum((2, 3), keepdim=True) / (1 - hidden).sum((2, 3), keepdim=True)
            blind = ((mean - images).abs() * hidden).sum() / hidden.sum() / 3
        parts = {"blind_loss": blind, "hidden": hidden.mean()}
        return Step(with_pooled(loss, features.pooled), parts, features.pooled.detach())
