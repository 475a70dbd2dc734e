"""Less memory beside LoRA: a layer keeps nothing of what a norm or an activation gave it; backward makes it again.

What the norm or the activation was given is kept anyway. Where an operation in between makes another tensor of it, the
layer keeps its input as always.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.activations import GELU, GELUTanh, QuickGELU, Swish
from timm.layers.norm import RmsNorm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# What is made from what it is given in one pass over it.
_CHEAP: tuple[type[nn.Module], ...] = (
    nn.LayerNorm,
    nn.RMSNorm,
    RmsNorm,
    nn.GELU,
    nn.SiLU,
    nn.ReLU,
    GELU,
    GELUTanh,
    QuickGELU,
    Swish,
)


class Source(NamedTuple):
    """A module gave a tensor, of another one."""

    module: nn.Module
    of: Tensor
    version: int  # of the tensor: what was changed in place since is another


class Remembering(nn.Module):
    """What a cheap layer of any class becomes: what it gives says of what it was made."""

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        """As its class does."""
        out: Tensor = super().forward(x, *more)
        if torch.is_grad_enabled() and out.requires_grad and not more and not torch.compiler.is_compiling():
            marked: Any = out  # whose type declares no such attribute
            marked.made_by = Source(self, x, out._version)
        return out


@cache
def _remembering(kind: Any) -> type[Any]:
    return type(f"Remembering{kind.__name__}", (Remembering, kind), {})


def remember(model: nn.Module) -> None:
    """Let the cheap layers of a frozen model say what they have made."""
    for module in model.modules():
        if isinstance(module, _CHEAP) and not getattr(module, "inplace", False):
            kind: Any = type(module)
            module.__class__ = _remembering(kind)


def forget(model: nn.Module) -> None:
    """Make its layers what they were."""
    for module in model.modules():
        if isinstance(module, Remembering):
            module.__class__ = type(module).__mro__[2]


def source_of(x: Tensor) -> Source | None:
    """What gave a tensor, where that is known and it hasn't changed since."""
    found: Source | None = getattr(x, "made_by", None)
    return found if found is not None and found.version == x._version else None


def beside(x: Tensor, weight: Tensor, bias: Tensor | None, first: Tensor, second: Tensor) -> Tensor:
    """x (W + B A)^T + bias, of x [..., in], frozen W [out, in], A [rank, in] and B [out, rank]."""
    asked = torch.is_grad_enabled() and not torch.compiler.is_compiling()  # the compiler chooses what it keeps
    source = source_of(x) if asked else None
    if source is None:
        return _product(x, weight, bias, first, second)[0]
    out: Tensor = _Beside.apply(x, weight, bias, first, second, source.of, source.module)
    return out


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's output, and x A^T."""
    plain, small = F.linear(x, weight, bias), F.linear(x, first)
    out = torch.addmm(plain.flatten(0, -2), small.flatten(0, -2), second.T)  # adds without a tensor of its own
    return out.view_as(plain), small


class _Beside(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        first: Tensor,
        second: Tensor,
        of: Tensor,
        module: nn.Module,
    ) -> Tensor:
        device = x.device.type
        out, small = _product(x, weight, bias, first, second)
        ctx.save_for_backward(weight, first, second, of, small)
        ctx.module, ctx.device = module, device
        ctx.how = {"dtype": torch.get_autocast_dtype(device), "enabled": torch.is_autocast_enabled(device)}
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, first, second, of, small = ctx.saved_tensors
        rows, kind = grad.flatten(0, -2), grad.dtype
        through = rows @ second.to(kind)
        with torch.no_grad(), torch.autocast(ctx.device, **ctx.how):
            x = ctx.module(of)
        of_x = torch.addmm(rows @ weight.to(kind), through, first.to(kind)).view_as(x).to(x.dtype)
        of_first = through.T @ x.to(kind).flatten(0, -2)
        of_second = rows.T @ small.to(kind).flatten(0, -2)
        return of_x, None, None, of_first.to(first.dtype), of_second.to(second.dtype), None, None
