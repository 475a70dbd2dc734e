"""stable-pretraining's DINO in its own LightningModule, with its own callback for the teacher.

It has no weight norm, and no schedule of weight decay: neither is added.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning
import recipe
import torch
from clock import Clock, Repeated, Ticks, measure
from stable_pretraining.callbacks import TeacherStudentCallback
from stable_pretraining.methods import DINO


class Pretraining(DINO):  # type: ignore[misc]  # the library has no types
    """Takes a batch as the library's training step hands it over."""

    def forward(self, batch: dict[str, Any], stage: str) -> dict[str, Any]:
        """[B, 3, S, S] a view to the loss."""
        views = batch["views"]
        return {"loss": super().forward(global_views=views[:2], local_views=views[2:]).loss}


class Watch(Ticks, lightning.Callback):
    """Beside its own callback."""


def train(clock: Clock, what: str, precision: str, photos: str) -> None:
    """Until the clock has seen enough."""
    model = Pretraining(
        recipe.BACKBONE,
        projector_hidden_dim=recipe.HIDDEN,
        projector_bottleneck_dim=recipe.BOTTLENECK,
        n_prototypes=recipe.PROTOTYPES,
        temperature_teacher_warmup=recipe.TEMP,
        temperature_teacher=recipe.TEMP,
        ema_decay_start=recipe.MOMENTUM,
        encoder_kwargs={"dynamic_img_size": True, "drop_path_rate": recipe.DROP_PATH},
    )
    model.optim = {
        "optimizer": partial(torch.optim.AdamW, lr=recipe.LR, weight_decay=recipe.DECAY),
        "scheduler": "CosineAnnealingLR",
        "interval": "step",
    }
    trainer = lightning.Trainer(
        accelerator="cpu",
        precision=precision,
        max_epochs=1,
        callbacks=[TeacherStudentCallback(), Watch(clock)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.gradient_clip_val_, trainer.gradient_clip_algorithm_ = recipe.CLIP, "norm"  # as its own Manager does it
    trainer.fit(model, Repeated({"views": recipe.views()}, clock.batches))


if __name__ == "__main__":
    measure(train)
