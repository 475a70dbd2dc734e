"""DINO: self-distillation with no labels (2104.14294)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.data.plan import ViewPlan
from ssl_vit.methods.dino_config import Config
from ssl_vit.methods.heads import DINOHead
from ssl_vit.methods.method import Method, Progress, Step
from ssl_vit.methods.prototype_loss import cross_view_loss
from ssl_vit.methods.targets import centred, exact, sinkhorn_center
from ssl_vit.methods.teacher import as_teacher, average_into, mean_over_ranks
from ssl_vit.schedules import cosine, linear


class Branch(nn.Module):
    """Student or teacher: a backbone, the head on its pooled features, and one on its patches where there is one."""

    def __init__(self, backbone: Backbone, head: DINOHead, patch_head: DINOHead | None = None) -> None:
        super().__init__()
        self.backbone, self.head, self.patch_head = backbone, head, patch_head


class DINO(Method):
    """A student learns to predict, from every crop, what its own moving average says of the two global crops."""

    heads: tuple[str, ...] = ("view",)

    def __init__(self, config: Config, backbone: Backbone, image_size: int) -> None:
        super().__init__()
        self.config, self.image_size = config, image_size
        self.student = self.new_student(backbone)
        self.teacher = as_teacher(self.student)
        out_dim = config.out_dim
        self.uniform_loss: float = math.log(out_dim)
        self.prototypes = out_dim
        self.center: Tensor
        self.register_buffer("center", torch.zeros(1, out_dim))

    def new_student(self, backbone: Backbone) -> Branch:
        """The backbone with what is trained beside it."""
        return Branch(backbone, self.new_head(backbone.info.dim))

    def new_head(self, dim: int) -> DINOHead:
        """A head on features [N, dim] as the configuration describes it."""
        config = self.config
        return DINOHead(
            dim,
            config.out_dim,
            hidden_dim=config.hidden_dim,
            bottleneck_dim=config.bottleneck_dim,
            batch_norm=config.head_norm == "batch",
            norm_last_layer=config.norm_last_layer,
        )

    def views(self) -> ViewPlan:
        """Two global crops, differently augmented, and the local ones."""
        return self.config.views(self.image_size)

    def forward(self, batch: list[Tensor], progress: Progress) -> Step:
        """Batch: global 1 and 2 [B, 3, S, S] each; local [L * B, 3, s, s] where there are any."""
        images = torch.cat(batch[:2])
        with torch.no_grad():
            seen = self.teacher.backbone(images).pooled
        features = [self.student.backbone(crops).pooled for crops in (images, *batch[2:])]
        loss, entropy = self.view_loss(seen, torch.cat(features), progress)
        return Step(loss, {"view_loss": loss.detach(), "view_entropy": entropy}, seen[: len(batch[0])])

    def view_loss(self, seen: Tensor, features: Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
        """The loss over pairs of crops, and the entropy of the teacher's targets, both [].

        seen: the teacher's pooled features of both global crops [2 * B, D]; features: the student's of all [V * B, D].
        """
        with torch.no_grad():
            logits, temp = exact(self.teacher.head(seen)), self.teacher_temp(progress)
            targets = centred(logits, self.target_center(logits, self.center, temp), temp)
            self.seen = {"center": mean_over_ranks(logits.mean(0, keepdim=True))}
        head, images = self.student.head, len(seen) // 2
        vectors = head.bottleneck(features).view(-1, images, self.config.bottleneck_dim)
        loss = cross_view_loss(vectors, head.last_layer, targets.view(2, images, -1), self.config.student_temp)
        return loss, torch.special.entr(targets).sum(-1).mean()

    def target_center(self, logits: Tensor, center: Tensor, temp: float) -> Tensor:
        """What the teacher's logits [N, K] are centred by: a running mean [1, K], or what gives equal shares."""
        return sinkhorn_center(logits, temp) if self.config.centering == "sinkhorn" else center

    def teacher_temp(self, progress: Progress) -> float:
        """Of the teacher's softmax at this step."""
        return self.warmed_up(self.config.warmup_teacher_temp, self.config.teacher_temp, progress)

    def warmed_up(self, start: float, end: float, progress: Progress) -> float:
        """Linear over the temperatures' warm-up, a step an epoch, then constant."""
        warmup = round(self.config.warmup_teacher_temp_epochs)
        return linear(start, end, progress.step // progress.per_epoch, warmup)

    def before_optimizer(self, progress: Progress) -> None:
        """The heads' last layers rest during the first epochs: their gradients are dropped."""
        if progress.step < self.config.freeze_last_layer_epochs * progress.per_epoch:
            for head in (self.student.head, self.student.patch_head):
                if head is not None:
                    head.last_layer.zero_grad()

    def after_step(self, progress: Progress) -> None:
        """Centre and teacher move: both are averages of what was just seen."""
        self.center.lerp_(self.seen["center"].mean(0, keepdim=True), 1.0 - self.config.center_momentum)
        momentum = cosine(self.config.momentum, 1.0, progress.step, progress.total)
        average_into(self.teacher, self.student, momentum)

    def exported(self) -> Backbone:
        """The teacher's backbone, the better of the two throughout training."""
        return self.teacher.backbone
