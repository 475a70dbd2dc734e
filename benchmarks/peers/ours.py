"""Our DINO by `ssl_vit.experiment.pretrain`, whole: with its callbacks and its log, and for a run its loader."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import lightning
import recipe
import torch
from clock import Clock, Repeated, Ticks, measure

from ssl_vit import experiment
from ssl_vit.config import load_config
from ssl_vit.methods.dino import DINO
from ssl_vit.methods.teacher import average_into
from ssl_vit.training import module
from ssl_vit.training.optim import clip_gradients, make_optimizer

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


class Watch(Ticks, lightning.Callback):
    """Among our own callbacks."""


def train(clock: Clock, what: str, precision: str, photos: str) -> None:
    """Until the clock has seen enough."""
    config = load_config(flags=SETTINGS | {"data.path": photos, "train.precision": precision, "train.epochs": 1})
    if what == "update":
        update(clock, experiment.build_method(experiment.resolve(config)[0]))
    run = experiment._Run
    trainer, loader = run._trainer, run._loader
    # What runs is the product's own code, but for a callback more and, for a step alone, views that are there already.
    run._trainer = lambda self, callbacks: trainer(self, [*callbacks, Watch(clock)])  # type: ignore[method-assign]  # see above
    if what == "step":
        one, two, *local = recipe.views()
        crops = [one, two, torch.cat(local)]
        run._loader = lambda *words: Repeated(next(iter(loader(*words))), clock.batches)  # type: ignore  # see above
        module.to_views = lambda *_, **__: crops  # type: ignore[assignment]  # see above
    with tempfile.TemporaryDirectory() as out:
        experiment.pretrain(config, Path(out) / "run")


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
