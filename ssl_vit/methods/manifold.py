"""Manifold distillation: patches shall be as alike as a frozen teacher finds them (2107.01378), without labels.

In place of the paper's teacher's logits stand the pooled vector's similarities to a queue, as in ``distill``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.backbones.intermediates import layer_count, read_all, reads_at_once
from ssl_vit.methods.distill import Taught
from ssl_vit.methods.joint import of_all_ranks
from ssl_vit.methods.manifold_config import Config
from ssl_vit.methods.method import Progress, Step
from ssl_vit.methods.similarity import on_grid, relation_gap, rows_of, units

KINDS = ("inside", "across", "random")


class Manifold(Taught):
    """Relation maps of chosen layers, inside an image, across images at a place, and of patches drawn at random.

    Images of all processes are compared with each other, but those of a step that comes in parts only within their
    part.
    """

    config: Config

    def __init__(self, config: Config, backbone: Backbone, image_size: int) -> None:
        super().__init__(config, backbone, image_size)
        counts = layer_count(backbone), layer_count(self.teacher.network)
        self.own, self.its = ([pair[i] % counts[i] for pair in config.layers] for i in (0, 1))
        self.at_once = reads_at_once(backbone)

    def forward(self, batch: list[Tensor], progress: Progress) -> Step:
        """Batch: one crop, [B, 3, S, S]."""
        (images,) = batch
        told, its = self.teacher.look_into(images, self.its)
        seen, own = read_all(self.student.backbone, images, self.own, self.at_once)
        pooled, parts = self.pooled(seen, told)
        found = torch.stack([self.relations(*pair, progress.step) for pair in zip(own, its, strict=True)]).mean(0)
        weights = torch.tensor((self.config.inside_weight, self.config.across_weight, self.config.random_weight))
        weighted = found * weights.to(found, non_blocking=True)
        loss = self.config.pooled_weight * pooled.loss + weighted.sum()
        parts |= {f"{kind}_loss": value for kind, value in zip(KINDS, found.detach(), strict=True)}
        return Step(loss, parts | {"pooled_loss": pooled.loss.detach()}, seen.pooled.detach())

    def relations(self, own: Tensor, its: Tensor, step: int) -> Tensor:
        """How far a layer's relations are from the teacher's, of each kind [3]; patches [B, D, H, W], [B, E, h, w]."""
        its = on_grid(its, (own.shape[-2], own.shape[-1]))
        student, teacher = (units(rows_of(each)) for each in (own, its))  # [B, N, D], [B, N, E]
        everyone = [of_all_ranks(each.transpose(0, 1)) for each in (student, teacher)]  # [N, images, …]
        drawn = draw_patches(everyone[0].shape[0] * everyone[0].shape[1], self.config.random_patches, step)
        some = [each.flatten(0, 1)[drawn.to(each.device, non_blocking=True)] for each in everyone]
        random = relation_gap(some[0], some[1]) if len(drawn) else 0 * own.sum()
        return torch.stack([relation_gap(student, teacher), relation_gap(everyone[0], everyone[1]), random])

    def remark(self, parts: dict[str, float]) -> str:
        """How near the student has come."""
        gaps = ", ".join(f"{parts[f'{kind}_loss'] ** 0.5:.2f} {kind}" for kind in KINDS)
        return (
            f"Cosines of patches differ from the teacher's by {gaps} (root mean square); the student's vectors have a "
            f"cosine of {parts['pooled_cosine']:.2f} with the teacher's."
        )


def draw_patches(among: int, count: int, step: int) -> Tensor:
    """The numbers of random patches of a step, the same in every process, without repetition: int64 [count], or all."""
    return torch.randperm(among, generator=torch.Generator().manual_seed(step))[:count]
