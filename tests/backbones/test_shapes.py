"""Shapes that are known at once are those that torch works out; what doesn't fit fails as torch does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.backbones.shapes import SHAPES, ShapesAlone


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.empty(shape, device="meta") for shape in shapes]


x, tokens, weight, eight, six = tensors((2, 8, 5, 7), (2, 3, 9, 8), (6, 8), (8,), (6,))
CASES: list[tuple[Callable[..., Tensor], tuple[object, ...], dict[str, object]]] = [
    (F.gelu, (x,), {}),
    (F.relu, (x,), {"inplace": True}),
    (F.silu, (x,), {}),
    (F.hardswish, (x,), {}),
    (F.linear, (tokens, weight, six), {}),
    (F.batch_norm, (x, eight, eight), {}),
    (F.layer_norm, (tokens, (8,), eight, eight, 1e-5), {}),
    (F.scaled_dot_product_attention, (tokens, tokens, tokens), {"dropout_p": 0.0}),
    (F.interpolate, (x, (3, 11)), {"mode": "bicubic"}),
    (F.interpolate, (x,), {"scale_factor": 2.0}),
]
WRONG: list[tuple[Callable[..., Tensor], tuple[object, ...]]] = [
    (F.linear, (x, weight)),
    (F.batch_norm, (x, six, six)),
    (F.layer_norm, (tokens, (6,))),
    (F.scaled_dot_product_attention, (tokens, x, x)),
    (F.interpolate, (x, (0, 3))),
]


def test_every_function_has_a_case() -> None:
    assert {function for function, _, _ in CASES} == set(SHAPES)


@pytest.mark.parametrize(("function", "args", "options"), CASES)
def test_shapes_are_torchs(
    function: Callable[..., Tensor], args: tuple[object, ...], options: dict[str, object]
) -> None:
    expected = function(*args, **options)
    with ShapesAlone():
        found = function(*args, **options)
    assert (found.shape, found.dtype, found.device) == (expected.shape, expected.dtype, expected.device)


@pytest.mark.parametrize(("function", "args"), WRONG)
def test_what_does_not_fit_fails(function: Callable[..., Tensor], args: tuple[object, ...]) -> None:
    with ShapesAlone(), pytest.raises((RuntimeError, ValueError, TypeError)):
        function(*args)


def test_real_tensors_are_computed() -> None:
    with ShapesAlone():
        assert torch.equal(F.relu(torch.tensor([-1.0, 2.0])).mul_(3), torch.tensor([0.0, 6.0]))
