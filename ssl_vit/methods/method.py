"""The method contract: how a batch of views becomes a loss. Torch only, no Lightning, no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.data.plan import ViewPlan
from ssl_vit.methods.workspace import Workspace


class Progress(NamedTuple):
    """Where a run is; every schedule is a pure function of it."""

    step: int  # optimiser steps done
    total: int  # of the whole run
    per_epoch: int  # steps an epoch, for recipes that count in epochs
    parts: int = 1  # in which the images of a step come, a forward pass each


@dataclass
class Step:
    """What one forward of a method gives."""

    loss: Tensor  # [] to be minimised
    parts: dict[str, Tensor] = field(default_factory=dict)  # named scalars for the log and the health verdict, among
    # which "blind_loss" is that of the best guess which does not look at the image, where that can be measured
    embedding: Tensor | None = None  # [B, D] detached features of one view, for health


class Method(nn.Module):
    """A self-supervised method around any backbone.

    All state that must survive a resume (centre, queue, teacher) is a buffer or a parameter.
    """

    seen: Mapping[str, Tensor] = MappingProxyType({})
    """What ``after_step`` needs of the images, set by ``forward``: rows, which are joined where they come in parts."""

    @staticmethod
    def begin(backbone: Backbone) -> None:
        """Change how a new backbone begins, before it gets the weights of a file or the method is built around it."""

    def views(self) -> ViewPlan:
        """What each image is turned into."""
        raise NotImplementedError

    def forward(self, batch: list[Tensor], progress: Progress) -> Step:
        """batch: a tensor for each View of the plan, [count * B, 3, S, S], crop-major (all images of crop 0 first).

        Then, where the plan asks for boxes, [B, plan.boxes, 4]; see ``data.boxes``.
        """
        raise NotImplementedError

    frozen: bool = False
    """Whether ``exported`` stays as it came, so that its features say nothing of what is learnt."""

    uniform_loss: float | None = None
    """The loss of a model whose outputs are all uniform (ln K for K prototypes), where the method has such a value."""

    heads: tuple[str, ...] = ()
    """Names of the outputs that are distilled as distributions over K prototypes; ``parts`` has NAME_loss and
    NAME_entropy, that of the targets, of each, and both are ln K where it is uniform."""
    prototypes: int = 0
    """That K."""

    def prepare(self, workspace: Workspace) -> None:
        """Before the first step: what has to be made of the images once a run; the first process comes first.

        A run that is resumed comes here too, before it gets the weights of its checkpoint.
        """

    def remark(self, parts: dict[str, float]) -> str:
        """A sentence for the health verdict, from the means of ``parts`` over the steps since the last one; or ""."""
        return ""

    def drawn(self, images: Tensor) -> Mapping[str, Tensor]:
        """What the method makes of some images [N, 3, S, S], as a person can look at it: the same shape, by name.

        For a run's report; called without gradients and in evaluation mode, and nothing of the method may change.
        """
        return {}

    def before_optimizer(self, progress: Progress) -> None:
        """Between backward and the optimiser's step: drop or change gradients."""

    def after_step(self, progress: Progress) -> None:
        """After the optimiser's step: teacher average, queues, from ``seen``."""

    def exported(self) -> Backbone:
        """The backbone worth keeping (the teacher's where there is one)."""
        raise NotImplementedError

    def artefacts(self, workspace: Workspace) -> None:
        """After the last step and the backbone's export, in the first process: write what else is worth keeping."""
