"""Gram anchoring: how alike a student's patches are shall be what it was in an earlier teacher (DINOv3, 2508.10104)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.methods.method import Progress
from ssl_vit.methods.targets import exact


def gram_loss(patches: Tensor, anchor: Tensor) -> Tensor:
    """The mean squared difference of the cosines of all pairs of an image's patches, of [B, D, H, W] each, [].

    The two may have different D.

    >>> one = torch.eye(2).view(1, 2, 1, 2)  # two patches at a right angle, and two that are one
    >>> round(gram_loss(one, torch.ones(1, 2, 1, 2)).item(), 4)
    0.5
    """
    with torch.autocast(patches.device.type, enabled=False):
        mine, theirs = (F.normalize(exact(each).flatten(2), dim=1) for each in (patches, anchor))
        return F.mse_loss(mine.mT @ mine, theirs.mT @ theirs)


class GramSchedule:
    """From which step on patches are anchored, and at which the anchor becomes the teacher of that time."""

    def __init__(self, begins: float, every: float) -> None:
        """begins: a share of the run; every: epochs between two renewals, 0 for none."""
        self.begins, self.every = begins, every

    def start(self, progress: Progress) -> int:
        """The first step with an anchor."""
        return round(self.begins * progress.total)

    def anchored(self, progress: Progress) -> bool:
        """Whether there is an anchor by now."""
        return progress.step >= self.start(progress)

    def renewed(self, progress: Progress) -> bool:
        """Whether the teacher becomes the anchor before this step; at the first of all it is that already."""
        since, every = progress.step - self.start(progress), round(self.every * progress.per_epoch)
        return progress.step > 0 and (since == 0 or (every > 0 and since > 0 and since % every == 0))


@torch.no_grad()
def become(anchor: nn.Module, teacher: nn.Module) -> None:
    """Copy a teacher's weights and buffers into an anchor of the same kind."""
    for mine, its in ((anchor.parameters(), teacher.parameters()), (anchor.buffers(), teacher.buffers())):
        for kept, now in zip(mine, its, strict=True):
            if kept is not now:
                kept.copy_(now)
