"""Thresholds fitted to a budget: by hand on a few images, and never above the budget."""

from __future__ import annotations

import pytest
import torch

from ssl_vit.backbones.adaptive import fit_thresholds, leaving, thresholds_of

COSTS = (1.0, 3.0, 6.0)


def test_the_surest_of_those_left_leave() -> None:
    """Of eight images half leave at the first exit, a quarter at the second, a quarter at the last."""
    sure = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], [0.1, 0.1, 0.1, 0.1, 0.2, 0.9, 0.3, 0.8]])
    least = thresholds_of(sure, (2.0, 1.0, 1.0))
    assert least == pytest.approx((0.6, 0.8), abs=1e-5)
    assert leaving(sure, least).tolist() == [0, 0, 0, 0, 2, 1, 2, 1]


@pytest.mark.parametrize("budget", [1.0, 1.3, 2.0, 3.7, 5.0, 5.9, 6.0, 100.0])
def test_a_budget_is_used_and_not_exceeded(budget: float) -> None:
    sure = torch.rand(2, 1000, generator=torch.Generator().manual_seed(0))
    spent = sure.double().new_tensor(COSTS)[leaving(sure, fit_thresholds(sure, COSTS, budget))].mean().item()
    assert spent <= budget + 1e-9
    assert spent >= 0.98 * min(budget, COSTS[-1])


def test_a_budget_below_the_first_exit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a budget of 0\.9 is less than the first exit's 1"):
        fit_thresholds(torch.rand(2, 10), COSTS, 0.9)


def test_all_that_all_exits_cost_lets_every_image_take_the_last() -> None:
    """Whatever the costs are rounded to."""
    sure = torch.rand(2, 11, generator=torch.Generator().manual_seed(0))
    for last in (0.1, 0.012, 0.0577, 1 / 3, 0.7):
        costs = (last / 4, last / 2, last)
        assert leaving(sure, fit_thresholds(sure, costs, last)).tolist() == [2] * 11
