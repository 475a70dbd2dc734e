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
row, kernel, half, line, numbers = tensors((8, 1, 7), (6, 8, 3, 3), (6, 4, 3, 2), (6, 8, 3), (4,))
mask, many = tensors((3, 1, 9), (2, 8, 5, 3))
integers = numbers.to(torch.long)
CASES: list[tuple[Callable[..., Tensor], tuple[object, ...], dict[str, object]]] = [
    (F.gelu, (x,), {}),
    (F.relu, (x,), {"inplace": True}),
    (F.silu, (x,), {}),
    (F.hardswish, (x,), {}),
    (F.relu6, (x,), {}),
    (F.hardsigmoid, (x,), {"inplace": True}),
    (F.hardtanh, (x, 0.0, 6.0), {}),
    (F.leaky_relu, (x, 0.1), {}),
    (F.dropout, (x, 0.1, False), {}),
    (F.normalize, (x,), {"dim": -1}),
    (Tensor.add, (x, row), {}),
    (Tensor.add, (row, x), {}),
    (Tensor.add, (x, x), {"alpha": 2}),
    (Tensor.add, (integers, 1.5), {}),
    (Tensor.sub, (x, 2), {}),
    (Tensor.sub, (eight, torch.empty(8, device="meta", dtype=torch.float64)), {}),
    (Tensor.mul, (x, 2.5), {}),
    (Tensor.mul, (x, x), {}),
    (Tensor.div, (row, x), {}),
    (torch.conv1d, (x[:, :, 0], line), {}),
    (torch.conv2d, (x, kernel, six, (2, 1), (1, 0), 1, 1), {}),
    (torch.conv2d, (x, half, None, [3], [2, 1], [2, 3], 2), {}),
    (torch.conv2d, (x, kernel, None, 1, "same"), {}),
    (torch.conv2d, (x[0], kernel), {}),
    (F.batch_norm, (x, None, None), {"training": True}),
    (F.group_norm, (x, 4, eight, eight), {}),
    (F.scaled_dot_product_attention, (tokens, tokens, tokens), {"attn_mask": mask}),
    (Tensor.mean, (x, (-2, -1)), {"keepdim": True}),
    (Tensor.mean, (x,), {}),
    (torch.mean, (x, 1), {}),
    (torch.cat, ([x, many], -1), {}),
    (torch.cat, ([eight, six],), {}),
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
    (Tensor.add, (x, tokens)),
    (Tensor.mul, (x, six)),
    (torch.conv2d, (x, half)),
    (torch.conv2d, (x[:, :, :2], kernel)),
    (F.batch_norm, (x, None, None, six)),
    (F.group_norm, (x, 3)),
    (F.scaled_dot_product_attention, (tokens, tokens, tokens, mask[:, :, :4])),
    (Tensor.mean, (x, 4)),
    (torch.cat, ([x, many], 1)),
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
    with ShapesAlone(), pytest.raises((RuntimeError, ValueError, TypeError, IndexError)):
        function(*args)


@pytest.mark.parametrize("options", [{"bidirectional": True, "num_layers": 2}, {"proj_size": 3, "batch_first": True}])
def test_recurrent_layers(options: dict[str, int]) -> None:
    layer = torch.nn.LSTM(8, 6, device="meta", **options)
    expected = layer(tokens[:, 0])
    with ShapesAlone():
        found = layer(tokens[:, 0])
        with pytest.raises(RuntimeError):
            layer(x[:, 0])
    assert [part.shape for part in (found[0], *found[1])] == [part.shape for part in (expected[0], *expected[1])]


def test_what_becomes_of_a_weight_is_no_weight() -> None:
    module = torch.nn.Linear(8, 6, device="meta")
    with ShapesAlone():
        module.doubled = module.bias.mul(2)
    assert len(list(module.parameters())) == 2


def test_real_tensors_are_computed() -> None:
    with ShapesAlone():
        assert torch.equal(F.relu(torch.tensor([-1.0, 2.0])).mul_(3), torch.tensor([0.0, 6.0]))
