"""Shifts, filters, circulant kernels and matrices over a grid, each against its formula, at any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg

from ssl_vit.backbones import mixing
from ssl_vit.backbones.families.ccs_mlp import CirculantMixing
from ssl_vit.backbones.families.gfnet import GlobalFilter
from ssl_vit.backbones.families.vip import PermuteMLP

SIZES = [(1, 1), (2, 1), (3, 5), (7, 6)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dim", [1, 2])
def test_a_cycle_of_channels_looks_ahead(size, dim):
    x = torch.randn(2, *size, 7, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for channel in range(7):
        offset = (channel + 1) % 3 - 1
        for place in range(size[dim - 1]):
            if 0 <= place + offset < size[dim - 1]:
                expected.select(dim, place)[..., channel] = x.select(dim, place + offset)[..., channel]
    assert torch.equal(mixing.shift_cycle(x, 3, dim), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dim", [2, 3])
def test_groups_move_and_zeros_come_in(size, dim):
    x = torch.randn(2, 12, *size)
    expected = torch.zeros_like(x)
    for channel in range(12):
        move = channel // 3 - 2  # groups of ceil(12 / 5)
        for place in range(size[dim - 2]):
            if 0 <= place - move < size[dim - 2]:
                expected[:, channel].select(dim - 1, place).copy_(x[:, channel].select(dim - 1, place - move))
    assert torch.equal(mixing.shift_groups(x, 5, dim), expected)


@pytest.mark.parametrize("size", SIZES)
def test_quarters_move_and_the_border_stays(size):
    x = torch.randn(2, *size, 9)
    rows, columns = (torch.arange(side) for side in size)
    down, up = x[:, (rows - 1).clamp(min=0)], x[:, (rows + 1).clamp(max=size[0] - 1)]
    right, left = x[:, :, (columns - 1).clamp(min=0)], x[:, :, (columns + 1).clamp(max=size[1] - 1)]
    expected = torch.cat([down[..., :2], up[..., 2:4], right[..., 4:6], left[..., 6:]], dim=-1)
    assert torch.equal(mixing.shift_quarters(x), expected)


@pytest.mark.parametrize("built", [(3, 4), (1, 5), (7, 7)])
def test_circulant_mixing_is_a_circulant_matrix_for_each_group(built):
    layer = CirculantMixing(6, 2, built).double()
    x = torch.randn(2, *built, 6, dtype=torch.float64)
    expected = torch.empty_like(x)
    for channel in range(6):
        matrix = torch.from_numpy(linalg.circulant(layer.weight[channel // 3].detach().numpy()))
        expected[..., channel] = (x[..., channel].flatten(1) @ matrix.T).reshape(2, *built)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)
    turned = layer(x.flatten(1, 2).roll(2, 1).reshape(x.shape))  # and it doesn't matter where the first token is
    torch.testing.assert_close(turned, layer(x).flatten(1, 2).roll(2, 1).reshape(x.shape), rtol=0, atol=1e-12)


def test_circulant_kernels_of_another_grid_keep_their_first_tap_and_a_smooth_sum():
    layer = CirculantMixing(2, 1, (6, 6)).double()
    layer.weight.data.fill_(0.5)
    for size in ((3, 4), (9, 7), (1, 1)):
        assert layer.sized(size, torch.float64).sum().item() == pytest.approx(18.0)
    layer.weight.data.zero_()
    layer.weight.data[0, 0] = 1.0
    kernel = layer.sized((12, 12), torch.float64)
    assert kernel.argmax() == 0


def response(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """By matrices, in float64: what a filter [H, W // 2 + 1, D, 2] makes of [B, H, W, D]."""
    height, width = x.shape[1:3]
    half = np.fft.rfft2(x.numpy(), axes=(1, 2), norm="ortho") * torch.view_as_complex(weight).numpy()
    return torch.from_numpy(np.fft.irfft2(half, s=(height, width), axes=(1, 2), norm="ortho"))


@pytest.mark.parametrize("size", [(7, 6), (14, 14), (5, 9), (1, 2)])
def test_filters_are_applied_in_float32_inside_mixed_precision(size):
    layer = GlobalFilter(4, size)
    x = torch.randn(2, *size, 4)
    expected = response(layer.complex_weight.detach().double(), x.double()).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
        rough = layer(x.bfloat16())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("size", [(4, 4), (9, 13), (20, 15), (1, 1)])
def test_filters_of_another_grid_are_those_of_its_frequencies(size):
    layer = GlobalFilter(1, (8, 8)).double()
    weight = layer.complex_weight.detach()[..., 0, :]
    found = layer.sized(size, torch.float64)[:, :, 0]
    assert found.shape == (size[0], size[1] // 2 + 1, 2)
    for row in range(size[0]):
        for column in range(size[1] // 2 + 1):
            u, v = row * 8 / size[0], column * 8 / size[1]
            low, left = int(u), int(v)
            right = min(left + 1, 4)
            above = weight[low] * (1 - (u - low)) + weight[(low + 1) % 8] * (u - low)
            expected = above[left] * (1 - (v - left)) + above[right] * (v - left)
            torch.testing.assert_close(found[row, column], expected)


@pytest.mark.parametrize("places", [1, 3, 4, 5, 12])
def test_permutation_of_another_grid_treats_constant_maps_alike(places):
    layer = PermuteMLP(12, 3, (4, 4)).double()
    small = torch.randn(1, 1, 1, 12, dtype=torch.float64)
    built = layer.mix(small.expand(1, 1, 4, 12), layer.mlp_h.weight, 4)
    other = layer.mix(small.expand(1, 1, places, 12), layer.mlp_h.weight, 4)
    expected = torch.einsum("ph,bwhd->bwpd", mixing.axis_resampling(4, places, built), built)
    torch.testing.assert_close(other, expected)


@pytest.mark.parametrize(("built", "size"), [(14, 6), (6, 14), (7, 7), (14, 1), (1, 5)])
def test_resampling_misses_no_cell(built, size):
    matrix = mixing.axis_resampling(built, size, torch.empty(0, dtype=torch.float64))
    torch.testing.assert_close(matrix.sum(1), torch.ones(size, dtype=torch.float64))
    if size <= built:
        assert (matrix.sum(0) > 0).all()
    if size == built:
        assert torch.equal(matrix, torch.eye(size, dtype=torch.float64))
