"""Shapes on the meta device: torch works many out in Python, slowly; the commonest are known here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
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
        first = args[0] if args else given.get("tensor")  # as the functions of torch.nn.init name it
        if isinstance(first, list | tuple) and first:
            first = first[0]
        if isinstance(first, Tensor) and first.is_meta:
            if func in FILLING:
                return first
            if func is torch.lstm and (shapes := _lstm(*args, **given)):
                return tuple(first.new_empty(shape) for shape in shapes)
            shape = SHAPES[func](*args, **given) if func in SHAPES else None
            if shape is not None:
                same = shape == first.shape and not isinstance(first, nn.Parameter)  # which a module would register
                return first if same else first.new_empty(shape)
        return func(*args, **given)


FILLING = {  # what initialises weights, and changes no shape
    *(Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, Tensor.fill_, Tensor.zero_),
    *(Tensor.mul_, Tensor.add_, Tensor.sub_, Tensor.div_, Tensor.clamp_),
    *(nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_, nn.init.kaiming_normal_),
}


def _activation(x: Tensor, *_: Any, **__: Any) -> Shape:
    return x.shape


def _elementwise(x: Tensor, other: Any, **kwargs: Any) -> Shape | None:
    if kwargs or not x.is_floating_point():
        return None
    if isinstance(other, int | float):
        return x.shape
    if not isinstance(other, Tensor) or not other.is_meta or other.dtype != x.dtype:
        return None
    if other.shape == x.shape:
        return x.shape
    longer, shorter = (x.shape, other.shape) if x.ndim >= other.ndim else (other.shape, x.shape)
    lead = len(longer) - len(shorter)
    pairs = list(zip(longer[lead:], shorter, strict=True))
    fits = all(1 in pair or pair[0] == pair[1] for pair in pairs)
    return (*longer[:lead], *(a if b == 1 else b for a, b in pairs)) if fits else None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Shape | None:
    return (*x.shape[:-1], weight.shape[0]) if x.ndim and x.shape[-1] == weight.shape[1] else None


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Shape | None:
    inner = weight.ndim - 2
    if isinstance(padding, str) or x.ndim != weight.ndim or x.shape[1] != weight.shape[1] * groups:
        return None
    steps, pads, gaps = (_each(value, inner) for value in (stride, padding, dilation))
    reach = [gap * (kernel - 1) + 1 for gap, kernel in zip(gaps, weight.shape[2:], strict=True)]
    sides = [(a + 2 * p - r) // s + 1 for a, p, r, s in zip(x.shape[2:], pads, reach, steps, strict=True)]
    return (x.shape[0], weight.shape[0], *sides) if min(sides) > 0 else None


def _each(value: Any, times: int) -> tuple[int, ...]:
    return tuple(value) * (times // len(value)) if isinstance(value, list | tuple) else (value,) * times


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Any = None,
    weight: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> Shape | None:
    widths = {len(part) for part in (running_mean, weight) if part is not None}
    return x.shape if x.ndim > 1 and widths <= {x.shape[1]} else None


def _group_norm(x: Tensor, num_groups: int, weight: Tensor | None = None, *_: Any, **__: Any) -> Shape | None:
    fits = x.ndim > 1 and x.shape[1] % num_groups == 0 and (weight is None or len(weight) == x.shape[1])
    return x.shape if fits else None


def _layer_norm(x: Tensor, normalized_shape: Any, *_: Any, **__: Any) -> Shape | None:
    return x.shape if x.shape[-len(normalized_shape) :] == torch.Size(normalized_shape) else None


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any) -> Shape | None:
    fits = q.shape[:-2] == k.shape[:-2] == v.shape[:-2] and q.shape[-1] == k.shape[-1] and k.shape[-2] == v.shape[-2]
    if attn_mask is not None:
        scores = (*q.shape[:-1], k.shape[-2])
        pairs = zip(reversed(attn_mask.shape), reversed(scores), strict=False)
        fits = fits and attn_mask.ndim <= q.ndim and all(mask in (1, score) for mask, score in pairs)
    return (*q.shape[:-1], v.shape[-1]) if fits else None


def _interpolate(x: Tensor, size: Any = None, *_: Any, **__: Any) -> Shape | None:
    sides = (size,) * (x.ndim - 2) if isinstance(size, int) else tuple(size or ())
    return (*x.shape[:2], *map(int, sides)) if len(sides) == x.ndim - 2 > 0 and min(sides) > 0 else None


def _mean(x: Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Shape | None:
    if kwargs or dim is None or not x.is_floating_point():
        return None
    dims = [dim] if isinstance(dim, int) else list(dim)
    if not dims or any(not -x.ndim <= one < x.ndim for one in dims):
        return None
    gone = {one % x.ndim for one in dims}
    return tuple(1 if i in gone else n for i, n in enumerate(x.shape) if keepdim or i not in gone)


def _cat(tensors: Any, dim: int = 0, **kwargs: Any) -> Shape | None:
    first = tensors[0]
    if kwargs or not -first.ndim <= dim < first.ndim:
        return None
    dim %= first.ndim
    for part in tensors:
        if not part.is_meta or part.dtype != first.dtype or part.ndim != first.ndim:
            return None
        if any(a != b for i, (a, b) in enumerate(zip(part.shape, first.shape, strict=True)) if i != dim):
            return None
    return (*first.shape[:dim], sum(part.shape[dim] for part in tensors), *first.shape[dim + 1 :])


def _lstm(x: Tensor, state: Any, weights: Any, *settings: Any) -> tuple[Shape, ...] | None:
    """The outputs, and both parts of the last state; None for packed sequences, which come with other arguments."""
    if not isinstance(state, list | tuple) or x.shape[-1] != weights[0].shape[1]:
        return None
    hidden, cell = state
    both = settings[4]  # bidirectional, after has_biases, num_layers, dropout and train
    return (*x.shape[:-1], hidden.shape[-1] * (2 if both else 1)), hidden.shape, cell.shape


SHAPES: dict[Callable[..., Any], Callable[..., Shape | None]] = {
    F.gelu: _activation,
    F.relu: _activation,
    F.relu6: _activation,
    F.silu: _activation,
    F.hardswish: _activation,
    F.hardsigmoid: _activation,
    F.hardtanh: _activation,
    F.leaky_relu: _activation,
    F.dropout: _activation,
    F.normalize: _activation,
    Tensor.add: _elementwise,
    Tensor.sub: _elementwise,
    Tensor.mul: _elementwise,
    Tensor.div: _elementwise,
    F.linear: _linear,
    torch.conv1d: _convolution,
    torch.conv2d: _convolution,
    F.batch_norm: _batch_norm,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.scaled_dot_product_attention: _attention,
    F.interpolate: _interpolate,
    Tensor.mean: _mean,
    torch.mean: _mean,
    torch.cat: _cat,
}
