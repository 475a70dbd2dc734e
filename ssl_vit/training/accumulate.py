"""What the parts of a batch say, worked through one after the other, as if it had been one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ssl_vit.methods.method import Step


def joined(steps: Sequence[Step]) -> Step:
    """One step from those of parts of equal size: mean loss and parts, without gradient; embeddings in order.

    What only some of them measured (the overlap of regions, where there are any) is the mean of those.
    """
    if len(steps) == 1:
        return steps[0]
    names = dict.fromkeys(name for step in steps for name in step.parts)
    parts = {name: mean([step.parts[name] for step in steps if name in step.parts]) for name in names}
    embeddings = [step.embedding for step in steps if step.embedding is not None]
    loss = mean([step.loss.detach() for step in steps])
    return Step(loss, parts, torch.cat(embeddings) if embeddings else None)


def mean(values: Sequence[Tensor]) -> Tensor:
    """Of scalars, []."""
    return torch.stack([*values]).mean()


def joined_rows(seen: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """``Method.seen`` of the parts as one."""
    return {name: torch.cat([part[name] for part in seen]) for name in seen[0]}
