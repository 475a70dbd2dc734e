"""Averages of the weights that are trained, kept beside them: of all steps, the newest most, or of the last ones."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.methods.method import Method
from ssl_vit.training.looks.look import Look
from ssl_vit.training.step import Learner, Outcome


class Average(Look):
    """An average of the exported backbone's weights and floating-point buffers, where that is what is trained.

    With ``momentum`` it is a moving one (EMA) of all steps, which begins quicker: (1 + n) / (10 + n) at the n-th, where
    that is less. With ``share`` it is the plain mean (SWA, 1803.05407) after each step of that last part of the run.
    """

    def __init__(self, name: str, method: Method, momentum: float | None = None, share: float | None = None) -> None:
        """name: also of the folder beside the export, "export-NAME"."""
        self.name, self._method, self._momentum, self._share = name, method, momentum, share
        self._kept: list[Tensor] = []
        self._count = 0  # of steps that are in it

    def begin(self, learner: Learner, start: int) -> None:
        """A moving average begins with the weights that the run begins with."""
        if self._momentum is not None and not self._kept:
            self._kept = [each.clone() for each in self._now()]
        self._kept = [kept.to(now.device) for kept, now in zip(self._kept, self._now(), strict=bool(self._kept))]

    @torch.no_grad()
    def after_step(self, outcome: Outcome) -> None:
        """Take in the weights after the step."""
        done, total = outcome.progress.step + 1, outcome.progress.total
        if not outcome.taken or (self._share is not None and done <= (1 - self._share) * total):
            return
        now = self._now()
        self._kept = self._kept or [each.clone() for each in now]
        if self._momentum is None:
            kept = self._count / (self._count + 1)
        else:
            kept = min(self._momentum, (1 + self._count) / (10 + self._count))
        torch._foreach_lerp_(self._kept, now, 1 - kept)
        self._count += 1

    def state(self) -> dict[str, Any]:
        """The average, by name."""
        return {"count": self._count, "kept": dict(zip(self._named(), self._kept, strict=bool(self._kept)))}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Go on with it."""
        self._count, self._kept = state["count"], list(state["kept"].values())

    def backbone(self) -> AdaptedBackbone | None:
        """A copy of the exported backbone with the average; None where no step is in it."""
        if not self._count:
            return None
        found = deepcopy(self._exported())
        found.model.load_state_dict(found.model.state_dict() | dict(zip(self._named(), self._kept, strict=True)))
        return found

    def _exported(self) -> AdaptedBackbone:
        backbone = self._method.exported()
        assert isinstance(backbone, AdaptedBackbone)
        return backbone

    def _named(self) -> dict[str, Tensor]:
        state = self._exported().model.state_dict()
        return {name: each for name, each in state.items() if each.is_floating_point()}

    def _now(self) -> list[Tensor]:
        return [each.detach() for each in self._named().values()]
