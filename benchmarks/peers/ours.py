"""Our DINO by `ssl_vit.pretrain`, whole: with its looks and its log, and for a run its loader."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import recipe
import torch
from clock import Clock, Repeated, measure

from ssl_vit.config import load_config
from ssl_vit.methods.dino import DINO
from ssl_vit.methods.teacher import average_into
from ssl_vit.run import pretrain as pretraining
from ssl_vit.run.plan import resolve
from ssl_vit.run.prepare import build_method
from ssl_vit.run.workspace import RunWorkspace
from ssl_vit.training import step
from ssl_vit.training.looks.look import Look
from ssl_vit.training.optim import clip_gradients, make_optimizer
from ssl_vit.training.step import Outcome

SETTINGS: dict[str, Any] = {
    "backbone.name": recipe.BACKBONE,
    "backbone.image_size": 224,
    "backbone.drop_path": recipe.DROP_PATH,
    "method.name": "dino",
    "method.out_dim": recipe.PROTOTYPES,
    "method.hidden_dim": recipe.HIDDEN,
    "method.bottleneck_dim": recipe.BOTTLENECK,
    "method.head_norm": "none",
    "method.norm_last_layer": True,
    "method.teacher_temp": recipe.TEMP,
    "method.warmup_teacher_temp": recipe.TEMP,
    "method.momentum": recipe.MOMENTUM,
    "method.centering": "mean",
    "method.freeze_last_layer_epochs": 0.0,
    "method.local_crops": 8,
    "method.local_size": 96,
    "method.global_scale": recipe.GLOBAL_SCALE,
    "method.local_scale": recipe.LOCAL_SCALE,
    "optim.optimizer": "adamw",
    "optim.lr": recipe.LR,
    "optim.weight_decay": recipe.DECAY,
    "optim.weight_decay_end": recipe.DECAY_END,
    "optim.clip": recipe.CLIP,
    "train.batch_size": recipe.IMAGES,
    "data.workers": 1,
}


class Watch(Look):
    """Among our own looks: tells a clock of every step."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def before_step(self, step: int) -> None:
        self._clock.tick()

    def after_step(self, outcome: Outcome) -> None:
        self._clock.see(torch.tensor(outcome.loss))


def train(clock: Clock, what: str, precision: str, photos: str) -> None:
    """Until the clock has seen enough."""
    config = load_config(flags=SETTINGS | {"data.path": photos, "train.precision": precision, "train.epochs": 1})
    if what == "update":
        update(clock, build_method(resolve(config)[0]))
    new_looks, loader = pretraining.new_looks, RunWorkspace.loader

    def watched(*given: Any) -> Any:
        checkup, looks = new_looks(*given)
        return checkup, [*looks, Watch(clock)]

    # What runs is the product's own code, but for a look more and, for a step alone, views that are there already.
    pretraining.new_looks = watched  # see above
    if what == "step":
        one, two, *local = recipe.views()
        crops = [one, two, torch.cat(local)]
        RunWorkspace.loader = lambda *a, **k: Repeated(next(iter(loader(*a, **k))), clock.batches)  # type: ignore  # see above
        step.to_views = lambda *_, **__: crops  # type: ignore[assignment]  # see above
    with tempfile.TemporaryDirectory() as out:
        pretraining.pretrain(config, Path(out) / "run")


def update(clock: Clock, method: Any) -> None:
    """Clip, AdamW and the teacher's average."""
    assert isinstance(method, DINO)
    trained = recipe.unit_gradients(method)
    optimizer = make_optimizer(method, "adamw", recipe.LR)
    while True:
        clock.tick()
        clip_gradients(trained, recipe.CLIP, per_tensor=True)
        optimizer.step()
        average_into(method.teacher, method.student, recipe.MOMENTUM)


if __name__ == "__main__":
    measure(train)
