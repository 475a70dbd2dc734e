"""LightlyTrain's DINO by `lightly_train.pretrain`, whole: with its callbacks and its log, and for a run its loader.

Its own optimiser (SGD), crops, colours, resting last layer and sizes by the number of images are replaced by DINO's.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from typing import Any, NoReturn

os.environ["LIGHTLY_TRAIN_EVENTS_DISABLED"] = "1"  # read when it is imported

import lightly_train
import recipe
from clock import Clock, Repeated, Ticks, measure
from lightly_train._callbacks import callback_helpers
from lightly_train._commands import train_helpers
from pytorch_lightning import Callback

METHOD = {
    "hidden_dim": recipe.HIDDEN,
    "bottleneck_dim": recipe.BOTTLENECK,
    "output_dim": recipe.PROTOTYPES,
    "student_freeze_last_layer_steps": 0,
    "teacher_temp": recipe.TEMP,
    "warmup_teacher_temp": recipe.TEMP,
    "momentum_start": recipe.MOMENTUM,
    "weight_decay_start": recipe.DECAY,
    "weight_decay_end": recipe.DECAY_END,
}


def crops(scale: tuple[float, float]) -> dict[str, float]:
    """Of random_resize."""
    return {"min_scale": scale[0], "max_scale": scale[1]}


TRANSFORM: dict[str, Any] = {
    "random_resize": crops(recipe.GLOBAL_SCALE),
    "color_jitter": {"prob": 0.8, "strength": 1.0, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1},
    "local_view": {"num_views": 8, "view_size": (96, 96), "random_resize": crops(recipe.LOCAL_SCALE)},
}


class Watch(Ticks, Callback):  # type: ignore[misc]  # the library has no types
    """Among its own callbacks."""


def train(clock: Clock, what: str, precision: str, photos: str) -> None:
    """Until the clock has seen enough."""
    callbacks = callback_helpers.get_callbacks
    callback_helpers.get_callbacks = lambda **words: [*callbacks(**words), Watch(clock)]
    if what == "step":
        batch = {"views": recipe.views(), "filename": [""] * recipe.IMAGES}
        train_helpers.get_dataloader = lambda **_: Repeated(batch, clock.batches)
    if what == "data":
        loader = train_helpers.get_dataloader
        train_helpers.get_dataloader = lambda **words: read(clock, loader(**words))
    with tempfile.TemporaryDirectory() as out:
        lightly_train.pretrain(
            out=f"{out}/run",
            data=photos,
            model=f"timm/{recipe.BACKBONE}",
            model_args={"dynamic_img_size": True, "drop_path_rate": recipe.DROP_PATH},
            method="dino",
            method_args=METHOD,
            transform_args=TRANSFORM,
            optim="adamw",
            optim_args={"lr": recipe.LR * 256 / recipe.IMAGES, "weight_decay": recipe.DECAY},  # it multiplies itself
            batch_size=recipe.IMAGES,
            epochs=1,
            precision=precision,
            accelerator="cpu",
            devices=1,
            num_workers=1,
        )


def read(clock: Clock, loader: Iterable[Any]) -> NoReturn:
    """Batches until the clock has seen enough."""
    while True:
        for _ in loader:
            clock.tick()


if __name__ == "__main__":
    measure(train)
