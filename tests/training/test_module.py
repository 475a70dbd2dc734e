"""The step under a loss scaler, as float16 on a GPU has it, on a CPU."""

from __future__ import annotations

from dataclasses import replace

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from ssl_vit.training.module import Pretraining, Recipe
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ssl_vit.methods.method import Method, Progress, Step

RECIPE = Recipe("sgd", 0.1, 0.999, 0.1, 0.0, 0.0, 0, 3.0, False, 0, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0))


class Slope(Method):
    """The gradient of its one weight is what ``slopes`` says for each step."""

    def __init__(self, slopes: list[float]) -> None:
        super().__init__()
        self.weight, self.slopes, self.weights = nn.Parameter(torch.ones(())), slopes, list[float]()

    def forward(self, batch: list[Tensor], progress: Progress) -> Step:
        self.weights.append(float(self.weight))
        return Step(self.weight * self.slopes[progress.step])


class Whole:
    """A batch that isn't divided."""

    def divided(self, parts: int) -> list[Whole]:
        return [self] * parts


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("scaled", [False, True])
def test_clipping_sees_gradients_without_their_scale(scaled: bool, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slopes 2, nan, 30 and 1 at a limit of 3 and a rate of 0.1, momentum 0.9: velocities 2, 4.8 and 5.32.

    Parts of a batch have the same slope, and so has their mean.
    """
    method = Slope([2.0, float("nan"), 30.0, 1.0, 0.0])
    module = Pretraining(method, replace(RECIPE, accumulate=parts), per_epoch=5, total_steps=5)
    scaler = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=5,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[scaler] if scaled else [],
    )
    monkeypatch.setattr("ssl_vit.training.module.to_views", lambda *_, **__: [])
    trainer.fit(module, DataLoader(range(5), collate_fn=lambda _: Whole()))
    assert method.weights[::parts] == method.weights[parts - 1 :: parts], "between two parts nothing moves"
    assert method.weights[::parts] == pytest.approx([1.0, 0.8, 0.8, 0.8 - 0.1 * 4.8, 0.8 - 0.1 * 4.8 - 0.1 * 5.32])
    if scaled:
        assert scaler.scaler is not None
        assert scaler.scaler.get_scale() == 512.0, "halved where the gradient was not finite"
