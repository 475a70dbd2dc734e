"""On the meta device torch works out many shapes in Python, slowly; those of the commonest layers are known at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Shape = tuple[int, ...]


class ShapesAlone(TorchFunctionMode):
    """Inside, meta tensors are not filled, and the functions of `SHAPES` give a shape without torch's help.

    What doesn't fit together goes to torch itself, which fails as always.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Every call of torch passes here."""
        given = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            if func in FILLING:
                return args[0]
            shape = SHAPES[func](*args, **given) if func in SHAPES else None
            if shape is not None:
                return args[0] if shape == args[0].shape else args[0].new_empty(shape)
        return func(*args, **given)


FILLING = {  # what initialises weights, and changes no shape
    *(Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, Tensor.fill_, Tensor.zero_),
    *(Tensor.mul_, Tensor.add_, Tensor.sub_, Tensor.div_, Tensor.clamp_),
}


def _activation(x: Tensor, *_: Any, **__: Any) -> Shape:
    return x.shape


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Shape | None:
    return (*x.shape[:-1], weight.shape[0]) if x.ndim and x.shape[-1] == weight.shape[1] else None


def _batch_norm(x: Tensor, running_mean: Tensor | None = None, *_: Any, **__: Any) -> Shape | None:
    return x.shape if running_mean is not None and len(running_mean) == x.shape[1] else None


def _layer_norm(x: Tensor, normalized_shape: Any, *_: Any, **__: Any) -> Shape | None:
    return x.shape if x.shape[-len(normalized_shape) :] == torch.Size(normalized_shape) else None


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any) -> Shape | None:
    fits = q.shape[:-2] == k.shape[:-2] == v.shape[:-2] and q.shape[-1] == k.shape[-1] and k.shape[-2] == v.shape[-2]
    return (*q.shape[:-1], v.shape[-1]) if fits and attn_mask is None else None


def _interpolate(x: Tensor, size: Any = None, *_: Any, **__: Any) -> Shape | None:
    sides = (size,) * (x.ndim - 2) if isinstance(size, int) else tuple(size or ())
    return (*x.shape[:2], *map(int, sides)) if len(sides) == x.ndim - 2 > 0 and min(sides) > 0 else None


SHAPES: dict[Callable[..., Any], Callable[..., Shape | None]] = {
    F.gelu: _activation,
    F.relu: _activation,
    F.silu: _activation,
    F.hardswish: _activation,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.scaled_dot_product_attention: _attention,
    F.interpolate: _interpolate,
}
