"""BYOL against a float64 re-derivation of its equations 1 and 2 (2006.07733)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ssl_vit.methods.byol import BYOL
from ssl_vit.methods.byol_config import Config
from ssl_vit.methods.method import Progress
from tests.methods.siamese import (
    HIDDEN,
    OUT,
    SITUATION,
    SIZE,
    TOTAL,
    Tiny,
    array,
    assert_gradient_is_the_derivative,
    assert_one_step_trains,
    assert_resumes_exactly,
    assert_teacher_is_left_alone,
    averaged,
    batch,
    queries_and_keys,
    train_step,
)
from tests.methods.small import REAL


def make() -> BYOL:
    torch.manual_seed(0)
    return BYOL(Config(hidden_dim=HIDDEN, out_dim=OUT, momentum=0.9), Tiny(), SIZE).double()


def reference_loss(method: BYOL, seed: int) -> float:
    """Equation 2 for both orders of the views: 2 - 2 <q, z'> / (|q| |z'|)."""
    (q1, q2), (k1, k2) = queries_and_keys(method, batch(seed))
    return float(np.mean(2 - 2 * (q1 * k2).sum(1)) + np.mean(2 - 2 * (q2 * k1).sum(1)))


def test_loss_and_teacher_equal_the_formulas_for_three_steps() -> None:
    method = make()
    for step in range(3):
        expected = reference_loss(method, step)
        before = [array(p).copy() for p in method.teacher.parameters()]
        assert train_step(method, step) == pytest.approx(expected, abs=1e-12)
        for found, wanted in zip(method.teacher.parameters(), averaged(method, before, 0.9, step), strict=True):
            np.testing.assert_allclose(array(found), wanted, atol=1e-12)


def test_gradient_is_the_derivative_of_the_formula() -> None:
    method = make()
    assert_gradient_is_the_derivative(method, lambda: reference_loss(method, 0))


def test_teacher_takes_no_gradient() -> None:
    assert_teacher_is_left_alone(make())


def test_resumes_exactly() -> None:
    assert_resumes_exactly(make)


def test_target_spread_is_one_for_opposite_targets_and_nothing_for_constant_ones() -> None:
    method = make()
    output = method.teacher.projector[3]
    with torch.no_grad():
        output.bias.copy_(torch.arange(OUT))
        weight, output.weight = output.weight.clone(), torch.nn.Parameter(torch.zeros_like(output.weight))
    assert method(batch(0), Progress(0, TOTAL, 1)).parts["target_spread"].item() == pytest.approx(0, abs=1e-7)
    with torch.no_grad():
        output.weight.copy_(weight)
    _, (k1, _) = queries_and_keys(method, batch(0))
    expected = np.sqrt(1 - np.square(k1.mean(0)).sum())  # E|k|² - |E k|², and |k| is 1
    assert method(batch(0), Progress(0, TOTAL, 1)).parts["target_spread"].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", REAL)
def test_one_step_trains(name: str) -> None:
    assert_one_step_trains(BYOL, Config(hidden_dim=32, out_dim=16, momentum=0.99, scale=(0.08, 1.0)), name)


def test_the_recipe_says_whose_it_is() -> None:
    for kind, optimizer, source in (("transformer", "adamw", "2104.02057"), ("convolutional", "sgd", "2011.10566")):
        value, why = Config().choose(replace(SITUATION, kind=kind))["optim.optimizer"]
        assert value == optimizer
        assert source in why
    first, second = Config(scale=(0.08, 1.0)).views(224).views
    assert (first.scale, first.interpolation, first.blur_p, first.solarize_p) == ((0.08, 1.0), "bicubic", 1.0, 0.0)
    assert (second.blur_p, second.solarize_p) == (0.1, 0.2)
