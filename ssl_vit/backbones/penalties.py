"""Losses that a network adds to the one of whatever method trains it: balance of experts, shares kept, anchors.

A module says ``penalise("balance", value)`` in its forward pass, and the step that is under way minimises the method's
loss plus that value. Outside a training step, in a teacher and in evaluation nothing is computed or kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ssl_vit.backbones.backbone import Backbone, Features


class Noted(NamedTuple):
    """A count of what happened in a step, and what a check says of it."""

    counts: Tensor
    say: Callable[[Tensor], str]


class Penalties(dict[str, Tensor]):
    """Name to a scalar [], with gradient, as it is added to the loss: already weighted; and counts beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: dict[str, Noted] = {}


_collected: ContextVar[Penalties | None] = ContextVar("penalties", default=None)


def wanted() -> bool:
    """Whether a step collects penalties here, so that a module may leave costly ones out where none does."""
    return _collected.get() is not None and torch.is_grad_enabled()


def penalise(name: str, value: Tensor) -> None:
    """Add a scalar [] to the loss of the step under way; what comes several times under a name is summed.

    name: as metrics.jsonl will call it, after "penalty/". value: weighted. Nothing happens where no step collects, as
    in evaluation, and where no gradient is wanted, as in a teacher.
    """
    found = _collected.get()
    if found is not None and torch.is_grad_enabled():
        found[name] = found[name] + value if name in found else value


def note(name: str, counts: Tensor, say: Callable[[Tensor], str]) -> None:
    """Have the next check on the run's health say ``say(counts)``, of all steps since the one before.

    name: as metrics.jsonl will call it, after "noted/". counts: of any shape; what comes several times under a name is
    summed. Nothing happens where :func:`penalise` does nothing.
    """
    found = _collected.get()
    if found is not None and torch.is_grad_enabled():
        before = found.noted.get(name)
        found.noted[name] = Noted(counts.detach() if before is None else before.counts + counts.detach(), say)


@contextmanager
def collecting() -> Iterator[Penalties]:
    """Inside, what :func:`penalise` is given ends up in this dictionary."""
    found = Penalties()
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def penalise_features(backbone: Backbone, name: str, penalty: Callable[[Tensor, Features], Tensor]) -> RemovableHandle:
    """From now on each pass of the backbone that is trained adds ``penalty(images, features)`` to the loss.

    For penalties that a setting asks for, on any backbone: penalty gets images [B, 3, H, W] and their
    :class:`Features`, and gives a weighted scalar [] with gradient. The handle's ``remove()`` ends it.
    """

    def add(_: Backbone, given: tuple[Tensor, ...], features: Features) -> None:
        if wanted():
            penalise(name, penalty(given[0], features))

    return backbone.register_forward_hook(add)
