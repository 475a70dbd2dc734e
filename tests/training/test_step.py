"""The step under a loss scaler, as float16 on a GPU has it, on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from ssl_vit.errors import UserError
from ssl_vit.methods.method import Method, Progress, Step
from ssl_vit.run.prepare import build_method
from ssl_vit.training.fabric import Autocast, new_fabric
from ssl_vit.training.loop import GIVE_UP, train
from ssl_vit.training.step import Learner, ReadyViews, take_step
from ssl_vit.training.stop import StopSignals
from tests.test_families_train import resolved
from tests.training.test_accumulate import RECIPE


class Slope(Method):
    """The gradient of its one weight is what ``slopes`` says for each step."""

    def __init__(self, slopes: list[float], asked: Any = None) -> None:
        super().__init__()
        self.weight, self.slopes, self.weights = nn.Parameter(torch.ones(())), slopes, list[float]()
        self.backbone = asked

    def forward(self, batch: list[Tensor], progress: Progress) -> Step:
        self.weights.append(float(self.weight.detach()))
        return Step(self.weight * self.slopes[progress.step])

    def exported(self) -> Any:
        return self.backbone


def learner_of(slopes: list[float], parts: int, fabric: Fabric | None = None) -> Learner:
    config = resolved("dino", "vision_transformer", **RECIPE | {"train.accumulate": parts})
    method = Slope(slopes, build_method(config).exported())
    return Learner(fabric or new_fabric(config.train), method, config, per_epoch=5, total=len(slopes))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("scaled", [False, True])
def test_clipping_sees_gradients_without_their_scale(scaled: bool, parts: int) -> None:
    """Slopes 2, nan, 30 and 1 at a limit of 3 and a rate of 0.1, momentum 0.9: velocities 2, 4.8 and 5.32.

    Parts of a batch have the same slope, and so has their mean.
    """
    scaler = Autocast("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    learner = learner_of(
        [2.0, float("nan"), 30.0, 1.0, 0.0], parts, Fabric(accelerator="cpu", plugins=scaler) if scaled else None
    )
    taken = [take_step(learner, ReadyViews([]), step).taken for step in range(5)]
    weights = learner.method.weights
    assert taken == [True, False, True, True, True]
    assert weights[::parts] == weights[parts - 1 :: parts], "between two parts nothing moves"
    assert weights[::parts] == pytest.approx([1.0, 0.8, 0.8, 0.8 - 0.1 * 4.8, 0.8 - 0.1 * 4.8 - 0.1 * 5.32])
    if scaled:
        assert scaler.scaler.get_scale() == 512.0, "halved where the gradient was not finite"


class Unsaved:
    """Checkpoints that are never due."""

    def due(self, done: int, total: int) -> bool:
        return False

    def newest(self) -> None:
        return None


def test_a_run_that_has_diverged_ends(caplog: pytest.LogCaptureFixture) -> None:
    nan = float("nan")
    learner = learner_of([nan] * (GIVE_UP - 1) + [1.0] + [nan] * GIVE_UP + [1.0], 1)
    with pytest.raises(UserError, match=f"diverged: {GIVE_UP} steps in a row .*, up to step {2 * GIVE_UP - 1};"):
        train(learner, [ReadyViews([])] * 30, [], Unsaved(), StopSignals())
    assert caplog.text.count("the step was not taken") == 2 * GIVE_UP - 1


def test_sgd_goes_on_where_a_layer_gets_its_first_gradient_late() -> None:
    """DINO's last layer rests in the first epoch; then it moves with the others, as plain SGD would move it."""
    more = {"method.freeze_last_layer_epochs": 1.0, "optim.optimizer": "sgd", "optim.lr": 0.1, "optim.clip": 0.0}
    config = resolved("dino", "resnet", **more | {"optim.warmup_epochs": 0.0, "train.precision": "32-true"})
    method = build_method(config)
    views = [torch.randn(view.count * 4, 3, view.size, view.size) for view in method.views().views]
    learner, layer = Learner(new_fabric(config.train), method, config, per_epoch=2, total=10), method.student.head
    moved = []
    for step in range(4):
        before = layer.last_layer.weight_v.detach().clone()
        assert take_step(learner, ReadyViews(views), step).taken
        moved.append(not layer.last_layer.weight_v.equal(before))
    assert moved == [False, False, True, True]
