"""EsViT: self-distillation of images and of their regions (2106.09785)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.methods.dense import DenseDINO
from ssl_vit.methods.dense_loss import dense_loss
from ssl_vit.methods.esvit_config import Config
from ssl_vit.methods.heads import CELLS
from ssl_vit.methods.method import Progress, Step
from ssl_vit.methods.targets import exact


class EsViT(DenseDINO):
    """DINO, and the same for regions: each of the student's learns from the teacher's that is most like it."""

    config: Config
    heads = ("view", "region")

    def forward(self, batch: list[Tensor], progress: Progress) -> Step:
        """Batch: global 1 and 2 [B, 3, S, S] each; local [L * B, 3, s, s] where there are any."""
        images = torch.cat(batch[:2])
        with torch.no_grad():
            seen = self.teacher.backbone(images)
        crops = [self.student.backbone(views) for views in (images, *batch[2:])]
        view, view_entropy = self.view_loss(seen.pooled, torch.cat([crop.pooled for crop in crops]), progress)
        parts, embedding = {"view_loss": view.detach(), "view_entropy": view_entropy}, seen.pooled[: len(batch[0])]
        if self.views_alone(progress):
            self.seen = {**self.seen, "patch_center": self.patch_center}
            idle = torch.stack([weight.sum() for weight in self.patch_heads()[0].parameters()]).sum()
            return Step(view + 0 * idle, parts, embedding)  # DDP expects a gradient of all weights
        temp = self.teacher_temp(progress)
        region, region_entropy = self.region_loss(seen.patches, [crop.patches for crop in crops], temp)
        parts |= {"region_loss": region.detach(), "region_entropy": region_entropy}
        return Step((view + region) / 2, parts, embedding)

    def views_alone(self, progress: Progress) -> bool:
        """Whether regions are not matched yet."""
        return progress.step < self.config.region_from * progress.total

    def remark(self, parts: dict[str, float]) -> str:
        """Whether regions are matched."""
        if "region_loss" in parts:
            return ""
        return f"Whole crops alone are matched until {self.config.region_from:.0%} of the run."

    def before_optimizer(self, progress: Progress) -> None:
        """What isn't trained yet doesn't decay either."""
        super().before_optimizer(progress)
        if self.views_alone(progress):
            self.patch_heads()[0].zero_grad()

    def region_loss(self, seen: Tensor, crops: list[Tensor], temp: float) -> tuple[Tensor, Tensor]:
        """The loss over pairs of a global crop and another one, and the entropy of the teacher's targets, both [].

        seen: the teacher's patches of both global crops [2 * B, D, H, W]; crops: the student's of crops of one size
        each, [V * B, D, h, w], the global ones first.
        """
        size, head = len(seen) // 2, self.patch_heads()[0]
        keys, queries = regions(seen, size), [regions(crop, size) for crop in crops]
        targets, entropy = self.patch_targets(self.teacher_vectors(keys.flatten(0, 2)), temp)
        vectors = head.bottleneck(torch.cat([query.flatten(0, 2) for query in queries]))
        views = [view for query in queries for view in query]
        rows, pairs = [view.shape[:2].numel() for view in views], 2 * (len(views) - 1)
        shares, drawn, places = [], [], []
        for v, (view, vector) in enumerate(zip(views, torch.split(vectors, rows), strict=True)):
            others = {0, 1} - {v}
            shares.append(vectors.new_full(vector.shape[:1], len(others) / (pairs * len(vector))))
            for t in others:
                of_image = torch.arange(t * size, (t + 1) * size, device=seen.device)[:, None] * keys.shape[2]
                places.append((of_image + nearest(view, keys[t])).flatten())
                drawn.append(vector / (pairs * len(vector)))
        learnt = vectors.new_zeros(keys.shape[:3].numel(), vectors.shape[1])
        learnt = learnt.index_add(0, torch.cat(places), torch.cat(drawn))
        loss = dense_loss(vectors, torch.cat(shares), learnt, targets, head.last_layer, self.config.student_temp)
        return loss, entropy


def regions(patches: Tensor, size: int) -> Tensor:
    """Patches of V views of ``size`` images, [V * B, D, H, W], as [V, B, H * W, D]."""
    return patches.flatten(2).mT.reshape(-1, size, patches.shape[-2:].numel(), patches.shape[1])


@torch.no_grad()
def nearest(queries: Tensor, keys: Tensor) -> Tensor:
    """For each query [B, S, D] the index [B, S] of the key [B, T, D] of the same image with the largest cosine.

    The similarities of some images exist at a time. A query's own length changes nothing and is left as it is.
    """
    images = max(1, CELLS // (queries.shape[1] * keys.shape[1]))
    with torch.autocast(keys.device.type, enabled=False):
        unit = F.normalize(exact(keys), dim=-1)
        pairs = zip(torch.split(exact(queries), images), torch.split(unit, images), strict=True)
        return torch.cat([torch.bmm(query, key.mT).argmax(-1) for query, key in pairs])
