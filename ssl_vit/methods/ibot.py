"""iBOT: self-distillation of images, and of patches hidden from the student (2111.07832)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssl_vit.backbones.backbone import Backbone, Features
from ssl_vit.data.masks import blockwise_masks
from ssl_vit.errors import UserError
from ssl_vit.methods.dense import DenseDINO
from ssl_vit.methods.dense_loss import dense_loss
from ssl_vit.methods.dino import Branch
from ssl_vit.methods.gram import GramSchedule, become, gram_loss
from ssl_vit.methods.ibot_config import Config
from ssl_vit.methods.method import Progress, Step
from ssl_vit.methods.teacher import as_teacher

MASKED = 0.5  # share of the global crops that are masked, as in the released models


class IBOT(DenseDINO):
    """DINO, and what the teacher says of a patch is predicted where the student doesn't see it."""

    config: Config
    heads = ("view", "patch")

    def __init__(self, config: Config, backbone: Backbone, image_size: int) -> None:
        info = backbone.info
        patches = math.ceil(image_size / info.stages[-1].stride) ** 2
        if config.mask_ratio[1] * patches < 1:
            raise UserError(
                f"method.mask_ratio: {config.mask_ratio[1]:g} of the patches of {info.name}, {patches} at {image_size} "
                "pixels, is not one patch; raise it or backbone.image_size, or choose a backbone with a finer grid"
            )
        super().__init__(config, backbone, image_size)
        self.uniform_loss = (1 + MASKED) * math.log(config.out_dim)
        self.anchor = as_teacher(self.teacher.backbone) if config.gram_weight > 0 else None
        self.gram = GramSchedule(config.gram_from, config.gram_every)

    def new_student(self, backbone: Backbone) -> Branch:
        """One head serves images and patches, as in the released models, where both have the same width."""
        info, head = backbone.info, self.new_head(backbone.info.dim)
        return Branch(backbone, head, head if info.patch_dim == info.dim else self.new_head(info.patch_dim))

    def forward(self, batch: list[Tensor], progress: Progress) -> Step:
        """Batch: global 1 and 2 [B, 3, S, S] each; local [L * B, 3, s, s] where there are any."""
        images = torch.cat(batch[:2])
        with torch.no_grad():
            seen = self.teacher.backbone(images)
        masks = self.draw_masks(len(images), seen.patches.shape[-2], seen.patches.shape[-1])
        masked = self.student.backbone(images, masks.to(images.device, non_blocking=True))
        pooled = [masked.pooled, *(self.student.backbone(crops).pooled for crops in batch[2:])]
        view, view_entropy = self.view_loss(seen.pooled, torch.cat(pooled), progress)
        patch, patch_entropy = self.patch_loss(seen.patches, masked.patches, masks, progress)
        parts = {
            "view_loss": view.detach(),
            "patch_loss": patch.detach(),
            "view_entropy": view_entropy,
            "patch_entropy": patch_entropy,
            "hidden": masks.float().mean(),
        }
        loss = view + MASKED * patch
        for name, (weight, value) in self.beside(masked, images, progress).items():
            loss, parts[name] = loss + weight * value, value.detach()
        return Step(loss, parts, seen.pooled[: len(batch[0])])

    def beside(self, masked: Features, images: Tensor, progress: Progress) -> dict[str, tuple[float, Tensor]]:
        """What else is learnt of the global crops [2 * B, 3, S, S], by name: a weight and a loss []."""
        if self.anchor is None or not self.gram.anchored(progress):
            return {}
        if self.gram.renewed(progress):
            become(self.anchor, self.teacher.backbone)
        with torch.no_grad():
            anchor = self.anchor(images).patches
        return {"gram_loss": (self.config.gram_weight, gram_loss(masked.patches, anchor))}

    def draw_masks(self, crops: int, height: int, width: int) -> Tensor:
        """Masks bool [crops, height, width] on the CPU, from torch's global generator; one half of them is empty."""
        low, high = self.config.mask_ratio
        counts = ((low + (high - low) * torch.rand(crops)) * height * width).long().clamp(min=1)
        counts[torch.randperm(crops)[round(MASKED * crops) :]] = 0
        return blockwise_masks(counts, height, width)

    def patch_loss(self, seen: Tensor, student: Tensor, masks: Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
        """The loss over hidden patches, averaged by crop and then over masked crops, and the targets' entropy, both [].

        seen, student: patches [B, D, H, W] of the same crops, the student's masked; masks: [B, H, W] on the CPU, so
        that no device waits for the number of hidden patches.
        """
        flat = masks.flatten(1)
        shares = flat.double() / flat.sum(1, keepdim=True).clamp(min=1) / flat.any(1).sum()
        hidden = flat.flatten().nonzero()[:, 0]
        shares, hidden = shares.flatten()[hidden], hidden.to(seen.device, non_blocking=True)

        start, end = self.config.warmup_teacher_patch_temp, self.config.teacher_patch_temp
        targets, entropy = self.patch_targets(
            self.teacher_vectors(rows(seen))[hidden],  # all are looked at, for the centre
            self.warmed_up(start, end, progress),
        )
        head = self.patch_heads()[0]
        vectors = head.bottleneck(rows(student)[hidden])
        shares = shares.to(vectors, non_blocking=True)
        learnt = vectors * shares[:, None]
        return dense_loss(vectors, shares, learnt, targets, head.last_layer, self.config.student_temp), entropy


def rows(patches: Tensor) -> Tensor:
    """[B, D, H, W] to [B * H * W, D]."""
    return patches.movedim(1, -1).flatten(0, 2)
