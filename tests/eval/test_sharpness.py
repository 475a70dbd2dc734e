"""Curvature against torch's own Hessian, and the score of a whole run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_vit.cli import main
from ssl_vit.errors import UserError
from ssl_vit.eval.api import evaluate
from ssl_vit.training.landscape import Landscape, filter_normalised, largest_eigenvalue


def test_the_largest_eigenvalue_is_that_of_the_hessian() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x, y = torch.randn(2, 8, 3).double(), torch.randn(2, 8, 1).double()
    weights = list(model.parameters())
    losses = [lambda i=i: (model(x[i]) - y[i]).square().mean() for i in range(2)]
    found = largest_eigenvalue(Landscape(weights, losses), 500, seed=0)
    names = [name for name, _ in model.named_parameters()]

    def loss(*values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        return (torch.func.functional_call(model, state, (x.flatten(0, 1),)) - y.flatten(0, 1)).square().mean()

    rows = torch.autograd.functional.hessian(loss, tuple(each.detach() for each in weights))
    sizes = [each.numel() for each in weights]
    hessian = torch.cat(
        [torch.cat([rows[i][j].reshape(m, n) for j, n in enumerate(sizes)], 1) for i, m in enumerate(sizes)]
    )
    assert found.found
    assert found.value == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-2)


@pytest.mark.parametrize(("values", "largest"), [((-5.0, 1.0, 3.0), 3.0), ((-1.0, 0.5, 4.0), 4.0)])
def test_the_largest_is_not_the_furthest_from_zero(values: tuple[float, ...], largest: float) -> None:
    weight = nn.Parameter(torch.zeros(3).double())
    landscape = Landscape([weight], [lambda: (torch.tensor(values).double() * weight.square()).sum() / 2])
    found = largest_eigenvalue(landscape, 200, seed=0)
    assert found.value == pytest.approx(largest, rel=1e-2)
    assert found.found
    assert found.iterations == 3, "as many products as there are dimensions"
    assert not weight.detach().any(), "weights are put back"


def test_directions_are_as_long_as_the_weights_filter_by_filter() -> None:
    weights = [torch.randn(4, 3, 2, 2), torch.randn(4), torch.randn(5, 7)]
    for weight, drawn in zip(weights, filter_normalised(weights, 1), strict=True):
        expected = weight.flatten(1).norm(dim=1) if weight.ndim > 1 else torch.zeros(4)
        found = drawn.flatten(1).norm(dim=1) if weight.ndim > 1 else drawn
        torch.testing.assert_close(found, expected)


def test_a_run_is_scored_and_drawn(
    whole_run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = {path: path.read_bytes() for path in (whole_run / "checkpoints").iterdir()}
    more = ["--images", "16", "--iterations", "3", "--places", "3", "--figure", str(tmp_path / "s.png")]
    assert main(["eval", "sharpness", str(whole_run), "--data", str(pictures / "train"), *more]) == 0
    printed = json.loads(capsys.readouterr().out)
    scores = printed["sharpness"]
    assert "surface" not in printed
    assert scores["loss_first"][1] == scores["loss_second"][1] == scores["loss"]
    assert min(scores["loss_first"][0], scores["loss_first"][2]) > scores["loss"], "the run has gone down"
    assert np.isfinite(scores["eigenvalue"])
    assert scores["iterations"] >= 3
    assert (tmp_path / "s.png").stat().st_size > 10_000
    assert checkpoints == {path: path.read_bytes() for path in (whole_run / "checkpoints").iterdir()}


def test_weights_without_a_run_have_no_loss(whole_run: Path, pictures: Path) -> None:
    with pytest.raises(UserError, match="give the folder of a run"):
        evaluate("sharpness", whole_run / "export", data=str(pictures / "train"))
