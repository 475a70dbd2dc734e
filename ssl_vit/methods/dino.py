"""DINO: self-distillation with no labels (2104.14294)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.data.plan import ViewPlan
from ssl_vit.methods.base_config import settled
from ssl_vit.methods.dino_config import Config
from ssl_vit.methods.heads import DINOHead
from ssl_vit.methods.method import Method, Progress, Step
from ssl_vit.methods.targets import centred, sinkhorn
from ssl_vit.methods.teacher import as_teacher, average_into, mean_over_ranks
from ssl_vit.schedules import cosine, linear


class Branch(nn.Module):
    """Student or teacher: a backbone and the head on it."""

    def __init__(self, backbone: Backbone, head: DINOHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head


class DINO(Method):
    """A student learns to predict, from every crop, what its own moving average says of the two global crops."""

    def __init__(self, config: Config, backbone: Backbone, image_size: int) -> None:
        super().__init__()
        self.config, self.image_size = config, image_size
        out_dim = settled(config.out_dim)
        head = DINOHead(
            backbone.info.dim,
            out_dim,
            hidden_dim=config.hidden_dim,
            bottleneck_dim=config.bottleneck_dim,
            batch_norm=settled(config.head_norm) == "batch",
            norm_last_layer=settled(config.norm_last_layer),
        )
        self.student = Branch(backbone, head)
        self.teacher = as_teacher(self.student)
        self.uniform_loss = math.log(out_dim)
        self.center: Tensor
        self.register_buffer("center", torch.zeros(1, out_dim))

    def views(self) -> ViewPlan:
        """Two global crops, differently augmented, and the local ones."""
        return self.config.views(self.image_size)

    def forward(self, batch: list[Tensor], progress: Progress) -> Step:
        """Batch: global 1 and 2 [B, 3, S, S] each; local [L * B, 3, s, s] where there are any."""
        size, images = len(batch[0]), torch.cat(batch[:2])
        with torch.no_grad():
            seen = self.teacher.backbone(images).pooled
            logits = exact(self.teacher.head(seen))
            targets = self._targets(logits, progress)
            self._seen_center = mean_over_ranks(logits.mean(0, keepdim=True))

        features = [self.student.backbone(crops).pooled for crops in (images, *batch[2:])]
        student = exact(self.student.head(torch.cat(features))) / self.config.student_temp
        out_dim = student.shape[1]
        loss = cross_view_loss(student.view(-1, size, out_dim), targets.view(2, size, out_dim))

        entropy = torch.special.entr(targets).sum(-1).mean()
        return Step(loss, {"teacher_entropy": entropy}, seen[:size])

    def _targets(self, logits: Tensor, progress: Progress) -> Tensor:
        if settled(self.config.centering) == "sinkhorn":
            return sinkhorn(logits, self.teacher_temp(progress))
        return centred(logits, self.center, self.teacher_temp(progress))

    def teacher_temp(self, progress: Progress) -> float:
        """Linear over the warm-up's epochs, a step an epoch, then constant."""
        epoch = progress.step // progress.per_epoch
        start, end = settled(self.config.warmup_teacher_temp), settled(self.config.teacher_temp)
        warmup = round(settled(self.config.warmup_teacher_temp_epochs))
        return linear(start, end, epoch, warmup)

    def before_optimizer(self, progress: Progress) -> None:
        """The last layer rests during the first epochs: its gradients are dropped."""
        if progress.step < settled(self.config.freeze_last_layer_epochs) * progress.per_epoch:
            for parameter in self.student.head.last_layer.parameters():
                parameter.grad = None

    def after_step(self, progress: Progress) -> None:
        """Centre and teacher move: both are averages of what was just seen."""
        self.center.lerp_(self._seen_center, 1.0 - self.config.center_momentum)
        momentum = cosine(settled(self.config.momentum), 1.0, progress.step, progress.total)
        average_into(self.teacher, self.student, momentum)

    def exported(self) -> Backbone:
        """The teacher's backbone, the better of the two throughout training."""
        return self.teacher.backbone


def cross_view_loss(student: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every crop against every global crop but itself, averaged over pairs and images.

    student: logits over temperature [V, B, K], of which the first T are the global crops; targets: [T, B, K],
    rows that sum to one. As they do, -q · log softmax(s) = logsumexp(s) - q · s: no log-softmax is stored.
    """
    crops, teachers = len(student), len(targets)
    with torch.autocast(student.device.type, enabled=False):
        normaliser = student.logsumexp(dim=-1)  # [V, B]
        agreement = torch.einsum("tbk,vbk->tvb", targets, student)
    other = ~torch.eye(teachers, crops, dtype=torch.bool, device=student.device)
    return (normaliser - agreement)[other].mean()


def exact(x: Tensor) -> Tensor:
    """At least float32, whatever autocast made of it."""
    return x if x.dtype == torch.float64 else x.float()
