"""A linear layer that reads what a GELU gave does not keep it: backward makes it again from the GELU's input.

That is kept anyway, and a ViT's step keeps a fifth less. These are torch's functions with torch's arguments, for
`bfloat16`. What a GELU gave is known by an attribute of the tensor, so that an operation in between (weights dropped, a
norm) loses it, and the linear layer keeps its input as always.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Made(NamedTuple):
    """Of what a GELU made a tensor."""

    of: Tensor
    version: int = 0  # of the tensor: what was changed in place since is another


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """`F.gelu`; its approximation is too slow in bfloat16 to be made twice."""
    out = F.gelu(input, approximate=approximate)
    return remember(out, Made(input)) if approximate == "none" else out


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, [..., D] to [..., E]."""
    note = made(input)
    if note is None or not torch.is_grad_enabled():
        return F.linear(input, weight, bias)
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
    out: Tensor = _Linear.apply(input.to(kind), weight.to(kind), None if bias is None else bias.to(kind), note.of)
    return out


def made(x: Tensor) -> Made | None:
    """How it was made, where that is known."""
    note: Made | None = getattr(x, "made", None)
    return note if note is not None and note.version == x._version else None


def remember(x: Tensor, note: Made | None) -> Tensor:
    """How it was made, for the linear layer that reads it."""
    marked: Any = x  # whose type declares no such attribute
    if x.requires_grad and note is not None:
        marked.made = note._replace(version=x._version)
    return x


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, of: Tensor) -> Tensor:
        ctx.save_for_backward(weight, of)
        with torch.autocast("cpu", enabled=False):
            return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, of = ctx.saved_tensors
        rows, of_weight = grad.flatten(0, -2), None
        if ctx.needs_input_grad[1]:
            of_weight = rows.T @ F.gelu(of).to(grad.dtype).flatten(0, -2)
        return grad @ weight, of_weight, rows.sum(0) if ctx.needs_input_grad[2] else None, None
