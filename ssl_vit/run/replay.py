"""A step that was lost, done again: where the first number that is not finite came from."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ssl_vit.run.restored import restored
from ssl_vit.training.looks.lost import lost_batch
from ssl_vit.training.step import take_step


@dataclass(frozen=True)
class Replay:
    """What a step that is done again shows."""

    step: int
    loss: float
    grad_norm: float
    taken: bool  # this time it would have been
    first: str  # what was not finite first: "the views", a module's name, "the gradient"; "" where all is finite
    checkpoint: Path | None  # the weights it began with; None for those of the first step


def replay_step(run: Path | str, step: int, rank: int = 0) -> Replay:
    """Do a lost step of a run again, on one device, with the weights of its newest checkpoint and the views it read.

    run: a folder in which ``lost_steps`` has the step; nothing in it is changed. rank: whose part of the batch.

    Raises:
        UserError: the step was not kept.
    """
    run = Path(run)
    learner, checkpoint = restored(run)
    method = learner.method
    batch = lost_batch(run, step, rank, method.views())
    with _Witness(method) as witness:
        outcome = take_step(learner, batch, step)
    first = witness.first or ("" if outcome.taken else "the gradient")
    return Replay(step, outcome.loss, outcome.grad_norm, outcome.taken, first, checkpoint)


class _Witness(ExitStack):
    """Inside, remembers the first module that makes of finite numbers some that aren't."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.first = ""
        for name, module in method.named_modules():
            seen = "the views" if module is method else ""
            handle = module.register_forward_pre_hook(lambda _, given, seen=seen: self._note(seen, given))
            self.callback(handle.remove)
            handle = module.register_forward_hook(lambda _, __, made, name=name: self._note(name or "the loss", made))
            self.callback(handle.remove)

    def _note(self, what: str, values: Any) -> None:
        if what and not self.first and any(not bool(each.isfinite().all()) for each in _tensors(values)):
            self.first = what


def _tensors(values: Any) -> list[Tensor]:
    """Those in a module's arguments or results, however they are put together."""
    if isinstance(values, Tensor):
        return [values]
    inside = values.values() if isinstance(values, dict) else values if isinstance(values, list | tuple) else ()
    loss = [values.loss] if hasattr(values, "loss") else []
    return [found for each in [*inside, *loss] for found in _tensors(each)]
