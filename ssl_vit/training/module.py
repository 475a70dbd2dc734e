"""The one LightningModule: any method, one step, with the schedules as functions of the step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.checkpoints.description import OURS
from ssl_vit.data.batch import Batch, to_views
from ssl_vit.errors import RunFailed
from ssl_vit.export import timm
from ssl_vit.methods.method import Method, Progress, Step
from ssl_vit.schedules import cosine, noise_seed, warmup_cosine
from ssl_vit.training.accumulate import joined, joined_rows
from ssl_vit.training.bfloat16 import lean_bfloat16
from ssl_vit.training.optim import clip_gradients, make_optimizer, set_hyperparameters

log = logging.getLogger("ssl_vit")

GIVE_UP = 10  # steps in a row without a finite gradient


@dataclass(frozen=True)
class Recipe:
    """What the optimiser is told, resolved: no "auto" left."""

    optimizer: Literal["adamw", "sgd"]
    lr: float  # peak
    beta2: float  # of AdamW
    min_lr: float
    weight_decay: float
    weight_decay_end: float
    warmup_steps: int
    clip: float
    clip_per_tensor: bool
    seed: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fast_colours: bool = False
    kernels: bool = False  # of numba, for colours on a CPU
    channels_last: bool = False
    accumulate: int = 1


class Pretraining(L.LightningModule):
    """Runs a method: augment on the device, loss, clip, step, teacher. Nothing here depends on which method it is."""

    def __init__(self, method: Method, recipe: Recipe, per_epoch: int, total_steps: int) -> None:
        super().__init__()
        self.method, self.recipe = method, recipe
        self.per_epoch, self.total_steps = per_epoch, total_steps
        self.finite, self.skipped_in_a_row, self.grad_norm = True, 0, 0.0
        self.last: Step | None = None
        self.loss = float("nan")  # of the last step, mean over ranks
        self.progress = Progress(0, total_steps, per_epoch, recipe.accumulate)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Beside the weights: which of them are the backbone that is exported, and what it is."""
        backbone = self.method.exported()
        assert isinstance(backbone, AdaptedBackbone)  # the one adapter
        place = next(name for name, module in self.named_modules() if module is backbone.model)
        config = timm.config(backbone, self.recipe.mean, self.recipe.std, {})
        checkpoint[OURS] = {"exported": f"{place}.", "config": config}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimiser; its learning rate and weight decay are set before every step."""
        return make_optimizer(self.method, self.recipe.optimizer, self.recipe.lr, self.recipe.beta2, self.method.slow)

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine."""
        r, step = self.recipe, self.progress.step
        return warmup_cosine(r.lr, r.min_lr, step, self.total_steps, r.warmup_steps)

    def weight_decay(self) -> float:
        """A cosine from the first value to the last."""
        return cosine(self.recipe.weight_decay, self.recipe.weight_decay_end, self.progress.step, self.total_steps)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Everything that depends on the step is set from the step alone."""
        self.progress = self.progress._replace(step=self.global_step)
        set_hyperparameters(self.optimizers().optimizer, self.learning_rate(), self.weight_decay())  # type: ignore[union-attr]  # there is one optimiser
        torch.manual_seed(noise_seed(self.recipe.seed, self.global_step, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Views to a loss, part by part; Lightning goes backward from the last one.

        With several processes gradients are added over them in that last backward pass: DDP expects none before the
        forward pass is over.
        """
        recipe, steps, seen = self.recipe, list[Step](), list[Mapping[str, Tensor]]()
        how = {"fast": recipe.fast_colours, "kernels": recipe.kernels, "channels_last": recipe.channels_last}
        for part in batch.divided(recipe.accumulate):
            if steps:
                self._go_back(steps[-1].loss / recipe.accumulate)
            views = to_views(part, recipe.mean, recipe.std, self.device, **how)
            with lean_bfloat16(self.device):
                steps.append(self.method(views, self.progress))
            seen.append(self.method.seen)
        self.last, self.method.seen = joined(steps), joined_rows(seen)
        return steps[-1].loss / recipe.accumulate

    def _go_back(self, loss: Tensor) -> None:
        """As Lightning does after the step, with the scaler where there is one, and outside autocast."""
        with torch.autocast(self.device.type, enabled=False):
            self.trainer.strategy.backward(loss, None)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Lightning asks for it before the last backward pass: nothing, as `optimizer_step` has done it."""

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip as the method's recipe says; a step whose gradient is not finite is not taken."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)  # with 16-mixed alone
        if scaler is not None:
            scaler.unscale_(optimizer)  # Lightning leaves it to fused optimisers, too late for clipping
        self.method.before_optimizer(self.progress)
        trained = [p for p in self.method.parameters() if p.requires_grad]
        self.grad_norm = float(clip_gradients(trained, self.recipe.clip, self.recipe.clip_per_tensor))
        self.finite = self.grad_norm < float("inf")  # False for nan too
        if not self.finite and scaler is None:  # a scaler does not take the step either, and lowers its scale
            for parameter in trained:
                parameter.grad = None

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """The optimiser's step and all that follows from it, before any callback looks at or saves the state."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        assert self.last is not None
        optimizer.zero_grad()  # before the next forward pass, whose activations take the most memory
        self.loss = float(self.trainer.strategy.reduce(self.last.loss.detach(), reduce_op="mean"))
        if self.finite:
            self.method.after_step(self.progress)
            self.skipped_in_a_row = 0
            return
        self.skipped_in_a_row += 1
        log.warning("step %d: the gradient is not finite, the step was not taken", self.progress.step)
        if self.skipped_in_a_row >= GIVE_UP:
            raise RunFailed(
                f"diverged: {GIVE_UP} steps in a row without a finite gradient, up to step {self.progress.step}; "
                "lower optim.lr or set train.precision=32-true, then --resume from the last good checkpoint"
            )
