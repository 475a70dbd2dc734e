"""What EsViT and iBOT share: DINO with a second loss, on patches, that has a centre of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.methods.dino import DINO, Branch
from ssl_vit.methods.dino_config import Config
from ssl_vit.methods.heads import DINOHead
from ssl_vit.methods.method import Progress
from ssl_vit.methods.targets import centred, exact
from ssl_vit.methods.teacher import mean_over_ranks

SAMPLE = 256  # patches whose entropy is measured


class DenseDINO(DINO):
    """Distils patches as DINO distils images."""

    def __init__(self, config: Config, backbone: Backbone, image_size: int) -> None:
        super().__init__(config, backbone, image_size)
        self.patch_center: Tensor
        self.register_buffer("patch_center", torch.zeros_like(self.center))

    def new_student(self, backbone: Backbone) -> Branch:
        """The backbone with one head for images and one for patches."""
        info = backbone.info
        return Branch(backbone, self.new_head(info.dim), self.new_head(info.patch_dim))

    def patch_heads(self) -> tuple[DINOHead, DINOHead]:
        """The student's and the teacher's."""
        student, teacher = self.student.patch_head, self.teacher.patch_head
        assert student is not None
        assert teacher is not None
        return student, teacher

    @torch.no_grad()
    def teacher_vectors(self, patches: Tensor) -> Tensor:
        """The teacher's patches [N, D] in its head's bottleneck [N, d]; their mean logits will move the centre."""
        head = self.patch_heads()[1]
        vectors = head.bottleneck(patches)
        with torch.autocast(patches.device.type, enabled=False):  # the layer is linear: the mean may go first
            logits: Tensor = head.last_layer(exact(vectors).mean(0, keepdim=True))
        self.seen = {**self.seen, "patch_center": mean_over_ranks(logits)}
        return vectors

    @torch.no_grad()
    def patch_targets(self, vectors: Tensor, temp: float) -> tuple[Callable[[slice], Tensor], Tensor]:
        """What gives the targets [n, K] of some of the teacher's vectors [N, d]; the entropy [] of a sample of them."""
        teacher, center = self.patch_heads()[1].last_layer, self.patch_center
        if self.config.centering == "sinkhorn":
            center = self.target_center(teacher(vectors), center, temp)
        sample = centred(teacher(vectors[:: max(1, len(vectors) // SAMPLE)]), center, temp)
        return lambda rows: centred(teacher(vectors[rows]), center, temp), torch.special.entr(sample).sum(-1).mean()

    def after_step(self, progress: Progress) -> None:
        """Both centres and the teacher move."""
        super().after_step(progress)
        self.patch_center.lerp_(self.seen["patch_center"].mean(0, keepdim=True), 1.0 - self.config.center_momentum)
