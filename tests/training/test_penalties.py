"""Losses that a network or a setting adds to a method's: what they change, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ssl_vit.backbones.backbone import Features
from ssl_vit.backbones.penalties import collecting, penalise, penalise_features, wanted
from ssl_vit.data.loader import build_loader
from ssl_vit.data.sources import open_source
from ssl_vit.methods.method import Method
from ssl_vit.run.prepare import build_method
from ssl_vit.training.fabric import new_fabric
from ssl_vit.training.looks.metrics import Metrics
from ssl_vit.training.step import Learner, Outcome, take_step
from tests.runs import rows
from tests.test_families_train import resolved
from tests.training.test_accumulate import RECIPE

WEIGHT = 1.0


def square(images: Tensor, features: Features) -> Tensor:
    return WEIGHT * features.pooled.square().mean()


class Balanced(nn.Module):
    """A layer with a loss of its own, as a mixture of experts has one."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        penalise("balance", WEIGHT * x.square().mean())
        return self.layer(x)


def stepped(
    name: str, pictures: Path, change: Callable[[Method], object] = lambda method: None, **more: object
) -> tuple[Outcome, dict[str, Tensor]]:
    """One step of plain descent without clipping, and the state after it."""
    config = resolved(name, "vision_transformer", **RECIPE | {"optim.clip": 0.0} | more)
    torch.manual_seed(0)
    method = build_method(config)
    change(method)
    (batch,) = build_loader(open_source(str(pictures / "train")), method.views(), batch_size=8, seed=0, total_steps=1)
    outcome = take_step(Learner(new_fabric(config.train), method, config, per_epoch=6, total=6), batch, 0)
    return outcome, dict(method.state_dict())


def student(method: Method) -> nn.Module:
    return method.get_submodule("student.backbone" if hasattr(method, "student") else "backbone")


@pytest.mark.parametrize("parts", [1, 2])
def test_a_penalty_moves_the_weights_by_its_own_gradient(parts: int, pictures: Path) -> None:
    """Descent is linear: the step with the penalty is the step without it, less rate x the penalty's gradient."""
    more = {"train.accumulate": parts}
    plain, before = stepped("simmim", pictures, **more)
    found, after = stepped("simmim", pictures, lambda m: penalise_features(student(m), "square", square), **more)
    assert found.loss == plain.loss, "the method's loss is shown without penalties"
    assert float(found.penalties["square"]) > 0
    doubled, twice = stepped(
        "simmim", pictures, lambda m: penalise_features(student(m), "square", lambda *x: 2 * square(*x)), **more
    )
    assert float(doubled.penalties["square"]) == pytest.approx(2 * float(found.penalties["square"]))
    moved = {name: after[name] - before[name] for name in before if before[name].is_floating_point()}
    assert max(float(each.abs().max()) for each in moved.values()) > 1e-3
    for name, once in moved.items():
        torch.testing.assert_close(twice[name] - before[name], 2 * once, rtol=1e-3, atol=1e-6, msg=name)


def test_a_layer_penalises_the_student_alone(pictures: Path) -> None:
    """Called in every forward pass of the student, which has two sizes of crops here, and not in the teacher's."""

    def balance(method: Method) -> None:
        for side in ("student", "teacher"):
            backbone = method.get_submodule(f"{side}.backbone.model")
            backbone.norm = Balanced(backbone.norm)

    asked = []
    plain, _ = stepped("dino", pictures)
    found, _ = stepped("dino", pictures, balance)
    assert found.loss == plain.loss
    assert plain.penalties == {}
    assert list(found.penalties) == ["balance"]
    with collecting() as penalties:
        asked.append(wanted())
        with torch.no_grad():
            asked.append(wanted())
            penalise("unseen", torch.ones(()))
        penalise("sum", torch.ones((), requires_grad=True))
        penalise("sum", torch.full((), 2.0))
    assert {name: float(value.detach()) for name, value in penalties.items()} == {"sum": 3.0}
    asked.append(wanted())
    assert asked == [True, False, False]


def test_penalties_are_logged(pictures: Path, tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0)
    outcome, _ = stepped("simmim", pictures, lambda m: penalise_features(student(m), "square", square))
    metrics.after_step(outcome)
    metrics.end()
    (row,) = rows(tmp_path)
    assert row["penalty/square"] == float(outcome.penalties["square"])
    assert row["loss"] == outcome.loss
