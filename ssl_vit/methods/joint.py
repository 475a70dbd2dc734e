"""What SimCLR, VICReg, VISReg and SIGReg share: one encoder for all views, and a loss on its projections alone."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.data.plan import ViewPlan
from ssl_vit.methods.joint_settings import JointConfig
from ssl_vit.methods.method import Method, Progress, Step
from ssl_vit.methods.siamese import Encoder
from ssl_vit.methods.targets import exact
from ssl_vit.methods.teacher import gather_over_ranks, rank_and_world


class JointEmbedding(Method):
    """Views of an image shall have one projection, and different images different ones; there is no teacher.

    A subclass says what that costs. Images of all processes are compared with each other, but those of a step that
    comes in parts only within their part.
    """

    def __init__(self, config: JointConfig, backbone: Backbone, image_size: int, projector: nn.Module) -> None:
        super().__init__()
        self.config, self.image_size = config, image_size
        self.student = Encoder(backbone, projector)

    def views(self) -> ViewPlan:
        """Global crops and, where the method has them, local ones."""
        return self.config.views(self.image_size)

    def forward(self, batch: list[Tensor], progress: Progress) -> Step:
        """Batch: a tensor for each kind of crop, [count * B, 3, S, S], the global ones first."""
        plan = self.views()
        images = len(batch[0]) // plan.views[0].count
        features = [self.student.backbone(crops).pooled for crops in batch]
        projections = exact(self.project(features)).view(plan.crops(), images, -1)
        with torch.autocast(projections.device.type, enabled=False):
            loss, parts = self.compare(projections, progress)
        return Step(loss, parts, features[0][:images].detach())

    def project(self, features: list[Tensor]) -> Tensor:
        """Pooled features of each kind of crop, [count * B, D], to projections of all crops [V * B, P]."""
        projections: Tensor = self.student.projector(torch.cat(features))
        return projections

    def compare(self, projections: Tensor, progress: Progress) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this process's projections [V, B, P], and named scalars without gradient for the log."""
        raise NotImplementedError

    def exported(self) -> Backbone:
        """The one backbone that there is."""
        return self.student.backbone


class _Gather(torch.autograd.Function):
    """The rows of all processes; to each row comes back what all processes make of it."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        """[B, ...] to [world * B, ...]."""
        return gather_over_ranks(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        """[world * B, ...] to [B, ...]."""
        rank, world = rank_and_world()
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(world)[rank]


def of_all_ranks(projections: Tensor) -> Tensor:
    """Projections [V, B, P] of this process to those of all, [V, world * B, P], through which gradients come back."""
    if rank_and_world()[1] == 1:
        return projections
    gathered: Tensor = _Gather.apply(projections.transpose(0, 1).contiguous())
    return gathered.transpose(0, 1)


@torch.no_grad()
def spread(projections: Tensor) -> Tensor:
    """How far apart images are projected, []: mean over views and dimensions of the deviation over images.

    projections: [V, N, P]. It is 0 where all images have one and the same.
    """
    return projections.std(dim=1, correction=0).mean()
