"""Distillation: a student says of images and of patches how alike they are, as a frozen teacher does.

After LightlyTrain's recipe, with these differences: the queue is full of the teacher's vectors before the first step,
patches are compared on the student's grid, and the linear maps to the teacher's widths begin as rotations.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssl_vit.backbones.backbone import Backbone, Features
from ssl_vit.checkpoints.reader import digest
from ssl_vit.data.plan import ViewPlan
from ssl_vit.errors import UserError
from ssl_vit.methods.distill_config import Config
from ssl_vit.methods.distill_settings import TaughtConfig
from ssl_vit.methods.frozen_teacher import FrozenTeacher
from ssl_vit.methods.method import Method, Progress, Step
from ssl_vit.methods.similarity import Told, enqueue, on_grid, rows_of, told_apart, units
from ssl_vit.methods.teacher import gather_over_ranks
from ssl_vit.methods.workspace import Workspace

log = logging.getLogger("ssl_vit")

DIGEST, QUEUE = "teacher.sha256", "teacher_queue.safetensors"  # in the run's folder


class Student(nn.Module):
    """The backbone, and linear maps from its widths to the teacher's, which are thrown away in the end.

    patches: whether there is one for patches too.
    """

    def __init__(self, backbone: Backbone, teacher: FrozenTeacher, patches: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = rotation(backbone.info.dim, teacher.dim)
        self.patch_head = rotation(backbone.info.patch_dim, teacher.patch_dim) if patches else None


def rotation(dim: int, out: int) -> nn.Linear:
    """A linear map that begins by keeping angles, as far as the widths allow; of equal widths it changes nothing.

    So a student that begins as its teacher has learnt everything.
    """
    layer = nn.Linear(dim, out)
    if dim == out:
        nn.init.eye_(layer.weight)
    else:
        nn.init.orthogonal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Taught(Method):
    """What methods with a frozen teacher share: it, the student, and the queue of the teacher's vectors."""

    maps_patches = False

    def __init__(self, config: TaughtConfig, backbone: Backbone, image_size: int) -> None:
        super().__init__()
        self.config, self.image_size = config, image_size
        self.teacher = FrozenTeacher(config.source(), backbone.info, config.teacher_size, config.teacher_layer)
        self.student = Student(backbone, self.teacher, self.maps_patches)
        self.queue: Tensor  # [K, D] unit vectors of the teacher
        self.register_buffer("queue", units(torch.randn(config.queue_size, self.teacher.dim)))

    def views(self) -> ViewPlan:
        """One crop, the same for both."""
        return self.config.views(self.image_size)

    def exported(self) -> Backbone:
        """The student's backbone."""
        return self.student.backbone

    def prepare(self, workspace: Workspace) -> None:
        """The teacher is the one that the run began with, and the queue is filled with its vectors, once a run."""
        weights = self.config.source().weights
        now = digest(weights)
        kept = workspace.kept(DIGEST, lambda staged: staged.write_text(f"{now}\n")).read_text().strip()
        if kept != now:
            raise UserError(
                f"{weights}: has changed since the run began (sha256 {now[:12]}…, it was {kept[:12]}…), so that the "
                "run would learn from another teacher; restore it, or begin a new run with --out"
            )
        teacher, student = self.teacher.info, self.student.backbone.info
        log.info(
            "the teacher, %s with %.1f million parameters, sees images of %d pixels in its own colours (%s, %s)",
            *(teacher.name, teacher.parameters / 1e6, self.teacher.size, teacher.mean, teacher.std),
        )
        if teacher.parameters < student.parameters:
            log.warning("the teacher is smaller than the student (%.1f million parameters)", student.parameters / 1e6)
        path = workspace.kept(QUEUE, lambda staged: self._fill_queue(workspace, staged))
        self.queue.copy_(load_file(path)["queue"])

    def _fill_queue(self, workspace: Workspace, path: Path) -> None:
        log.info("filling the queue with the teacher's vectors of %d crops", len(self.queue))
        found = list[Tensor]()
        for batch in workspace.batches(len(self.queue), workspace.seed + 1):
            found.append(units(self.teacher.look(workspace.views(batch)[0]).pooled).cpu())
            if sum(map(len, found)) >= len(self.queue):
                break
        save_file({"queue": torch.cat(found)[: len(self.queue)].clone()}, path)

    def pooled(self, seen: Features, told: Features) -> tuple[Told, dict[str, Tensor]]:
        """How far images' similarities to the queue are from the teacher's, and their cosine; the queue is noted."""
        own, wanted = units(self.student.head(seen.pooled)), units(told.pooled)
        self.seen = {"queue": wanted}
        return told_apart(own, wanted, self.queue, self.config.temperature), {"pooled_cosine": cosine(own, wanted)}

    def after_step(self, progress: Progress) -> None:
        """The teacher's vectors of this step take the place of the oldest."""
        enqueue(self.queue, gather_over_ranks(self.seen["queue"]), progress.step)


def cosine(own: Tensor, wanted: Tensor) -> Tensor:
    """The mean cosine [] of unit vectors [..., D]."""
    return (own.detach() * wanted).sum(-1).mean()


class Distill(Taught):
    """Images are compared with a queue of others, patches with the teacher's patches of their image."""

    config: Config
    maps_patches = True

    def forward(self, batch: list[Tensor], progress: Progress) -> Step:
        """Batch: one crop, [B, 3, S, S]."""
        (images,) = batch
        told, seen = self.teacher.look(images), self.student.backbone(images)
        pooled, parts = self.pooled(seen, told)
        patch, more = self.patches(seen.patches, told.patches)
        weights = (self.config.pooled_weight, self.config.patch_weight)
        loss, blind = (weights[0] * a + weights[1] * b for a, b in zip(pooled, patch, strict=True))
        parts |= more | {"pooled_loss": pooled.loss.detach(), "patch_loss": patch.loss.detach()}
        if len(images) > 1:
            parts["blind_loss"] = blind
        return Step(loss, parts, seen.pooled.detach())

    def patches(self, seen: Tensor, told: Tensor) -> tuple[Told, dict[str, Tensor]]:
        """How far patches' similarities to the teacher's [B, E, h, w] are from the teacher's own, on the grid of
        the student's [B, D, H, W]; and their cosine."""
        assert self.student.patch_head is not None
        wanted = units(rows_of(on_grid(told, (seen.shape[-2], seen.shape[-1]))))
        own = units(self.student.patch_head(rows_of(seen)))
        return told_apart(own, wanted, wanted, self.config.temperature), {"patch_cosine": cosine(own, wanted)}

    def remark(self, parts: dict[str, float]) -> str:
        """How near the student has come."""
        return (
            f"The student's vectors have a cosine of {parts['pooled_cosine']:.2f} with the teacher's, its patches of "
            f"{parts['patch_cosine']:.2f}."
        )
