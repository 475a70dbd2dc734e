"""One training step: views, loss, gradient, clip, optimiser, teacher.

It is the only one there is: the loop, ``ssl-vit bench``, the tests and the benchmarks all call :func:`take_step`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric
from torch import Tensor

from ssl_vit.backbones.penalties import Noted, Penalties, collecting
from ssl_vit.config import ResolvedConfig
from ssl_vit.data.batch import Batch, to_views
from ssl_vit.methods.method import Method, Progress, Step
from ssl_vit.schedules import cosine, held, noise_seed, rsqrt, warmup_cosine
from ssl_vit.training.accumulate import joined, joined_rows
from ssl_vit.training.buffers import Buffers
from ssl_vit.training.cpu.bfloat16 import lean_bfloat16
from ssl_vit.training.finite import all_finite
from ssl_vit.training.optim import averaged, clip_gradients, hold_backbones, make_optimizer, set_hyperparameters
from ssl_vit.training.sam import ascended
from ssl_vit.training.sharding import fill_whole, is_sharded
from ssl_vit.training.sparse import masks_of
from ssl_vit.training.speed import wants_channels_last

Clock = Callable[[str], AbstractContextManager[Any]]
"""Measures what happens inside, under the name of a part of a step."""
PARTS = ("transfer", "augment", "forward", "backward", "optimiser")
"""Those names."""


def untimed(part: str) -> AbstractContextManager[None]:
    """The clock of a step that nobody measures."""
    return nullcontext()


@dataclass(frozen=True)
class ReadyViews:
    """A batch whose views are there already, on the device: with it a step alone is tested and measured."""

    views: list[Tensor]  # as the method gets them

    def to(self, device: torch.device) -> ReadyViews:
        """Stay where it is."""
        return self

    def divided(self, parts: int) -> list[ReadyViews]:
        """Give every part the same views."""
        return [self] * parts


class Outcome(NamedTuple):
    """What a step has done."""

    progress: Progress  # of which ``step`` counts the steps before this one
    loss: float  # the method's, without penalties; mean over ranks
    given: Step  # what the method gave: parts and embedding; of this rank
    penalties: dict[str, Tensor]  # scalars []
    grad_norm: float  # before clipping
    lr: float
    taken: bool  # False where the loss or the gradient was not finite, and nothing has changed
    lost: Batch | ReadyViews | None = None  # what this rank read for a step that was not taken
    noted: Mapping[str, Noted] = MappingProxyType({})  # counts of what happened in the network; of this rank


class Learner:
    """A method on its devices, with its optimiser: all that a step needs, and all that it changes."""

    def __init__(self, fabric: Fabric, method: Method, config: ResolvedConfig, per_epoch: int, total: int) -> None:
        self.fabric, self.method, self.config = fabric, method, config
        self.per_epoch, self.total = per_epoch, total  # steps
        self.warmup = round(config.optim.warmup_epochs * per_epoch)
        self.channels_last = wants_channels_last(method.exported().info)
        self._copy = None  # for what is looked at, where it is not what is trained
        if is_sharded(fabric):
            self._copy = deepcopy(method)
        elif config.optim.optimizer == "schedulefree":
            self._copy = deepcopy(method).to(fabric.device)
        self.model = fabric.setup_module(method)
        self.buffers, self.ascent, self.masks = Buffers(method), Buffers(method), masks_of(method)
        self.infinite = {name for name, each in method.named_buffers() if not all_finite([each])}  # by design: masks
        optim = config.optim
        groups = (optim.layer_decay, optim.head_weight_decay, optim.backbone_rate)
        self.optimizer = make_optimizer(method, optim.optimizer, optim.lr, optim.beta2, *groups)
        self._optimizer: Any = fabric.setup_optimizers(self.optimizer)

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """What keeps small gradients from vanishing, with 16-mixed alone."""
        return getattr(self.fabric.strategy.precision, "scaler", None)

    def whole(self) -> Method:
        """The method with all of its weights, as they are looked at and kept; asked for on all ranks together.

        It is itself, or a copy: of a sharded one the whole, with Schedule-Free the average of its weights.
        """
        if self._copy is None:
            return self.method
        found, means = fill_whole(self._copy, self.method), averaged(self.optimizer)
        with torch.no_grad():
            for weight, kept in zip(self.method.parameters(), found.parameters(), strict=True):
                if weight in means:
                    kept.copy_(means[weight])
        return found

    def progress(self, step: int) -> Progress:
        """Where the run is after so many steps."""
        return Progress(step, self.total, self.per_epoch, self.config.train.accumulate)

    def learning_rate(self, step: int) -> float:
        """Rise linearly while warming up, then follow ``optim.schedule``."""
        optim = self.config.optim
        ends = (optim.lr, optim.min_lr, step, self.total, self.warmup)
        if optim.schedule == "cosine":
            return warmup_cosine(*ends)
        cooldown = 0 if optim.schedule == "constant" else round(optim.cooldown_epochs * self.per_epoch)
        return (rsqrt if optim.schedule == "rsqrt" else held)(*ends, cooldown)

    def weight_decay(self, step: int) -> float:
        """Follow a cosine from the first value to the last."""
        optim = self.config.optim
        return cosine(optim.weight_decay, optim.weight_decay_end, step, self.total)

    def views(self, batch: Batch | ReadyViews) -> list[Tensor]:
        """The batch as the method gets it, coloured on the device."""
        if isinstance(batch, ReadyViews):
            return batch.views
        data = self.config.data
        how = {"kernels": data.kernels == "numba", "channels_last": self.channels_last}
        return to_views(batch, data.mean, data.std, self.fabric.device, **how)

    def step_optimizer(self) -> None:
        """One step of the optimiser, through the scaler where there is one."""
        self._optimizer.step()

    def skip_optimizer(self) -> None:
        """No step of the optimiser; the scaler, where there is one, lowers its scale if gradients were too large."""
        if self.scaler is not None:
            self.scaler.update()


def take_step(learner: Learner, batch: Batch | ReadyViews, step: int, clock: Clock = untimed) -> Outcome:
    """Learn from a batch, ``step`` steps after the start; everything that depends on the step is set from it alone.

    A step whose loss or gradient is not finite is not taken, on all ranks together: nothing of a method changes.
    With ``optim.sam_rho`` a first pass tells where the loss is highest nearby, and a second one takes the gradient
    there, of the same views with the same noise.
    """
    fabric, method, optim = learner.fabric, learner.method, learner.config.optim
    progress, lr = learner.progress(step), learner.learning_rate(step)
    set_hyperparameters(learner.optimizer, lr, learner.weight_decay(step))
    learner.buffers.keep()
    with clock("transfer"):
        moved = batch.to(fabric.device)
    sharp = optim.sam_rho > 0
    told = _backward(learner, moved, progress, clock, alone=sharp and not optim.sam_global)
    if sharp:  # the gradient there is what counts; all else was said at the weights themselves
        with ascended(method, progress, optim.sam_rho, learner.ascent):
            _backward(learner, moved, progress, clock)
    method.seen = told.seen
    with clock("optimiser"):
        losses = mean_over_ranks(fabric, told.given.loss.detach(), told.penalties)
        grad_norm, loss, taken = _update(learner, progress, losses)
        if not taken:
            learner.buffers.put_back()
    lost = None if taken else batch
    return Outcome(progress, loss, told.given, told.penalties, grad_norm, lr, taken, lost, told.noted)


class Pass(NamedTuple):
    """What a forward and a backward pass over all parts of a batch say, beside the gradient that they leave."""

    given: Step
    seen: Mapping[str, Tensor]  # of the method
    penalties: dict[str, Tensor]
    noted: Mapping[str, Noted]


def _backward(
    learner: Learner, moved: Batch | ReadyViews, progress: Progress, clock: Clock, alone: bool = False
) -> Pass:
    """Leave the weights the batch's mean gradient, over all ranks or of this one ``alone``; noise is the step's own."""
    fabric, method, accumulate = learner.fabric, learner.method, learner.config.train.accumulate
    torch.manual_seed(noise_seed(learner.config.train.seed, progress.step, fabric.global_rank))
    given, seen, extra = list[Step](), list[Mapping[str, Tensor]](), list[Penalties]()
    for part in moved.divided(accumulate):
        last = len(given) == accumulate - 1
        with fabric.no_backward_sync(learner.model, enabled=alone or not last):
            found, penalties = _forward(learner, part, progress, clock)
            with clock("backward"):
                fabric.backward(sum(penalties.values(), found.loss) / accumulate)
        given.append(found)
        seen.append(method.seen)
        extra.append(penalties)
    return Pass(joined(given), joined_rows(seen), mean_penalties(extra), sum_noted(extra))


def _forward(learner: Learner, batch: Batch | ReadyViews, progress: Progress, clock: Clock) -> tuple[Step, Penalties]:
    """What the method and the network's own penalties say of some images."""
    fabric = learner.fabric
    with fabric.autocast():
        with clock("augment"):
            views = learner.views(batch)
        lean = lean_bfloat16(fabric.device, learner.config.train.lean_cpu)
        with clock("forward"), lean, collecting() as penalties:
            return learner.model(views, progress), penalties


def _update(learner: Learner, progress: Progress, losses: Tensor) -> tuple[float, float, bool]:
    """Clip as the recipe says and step, then the teacher; the gradient's norm, the loss, and whether it was taken.

    losses: [2], as all ranks know them; where they or the gradient are not finite, the step is not taken.
    """
    method, config = learner.method, learner.config
    if learner.scaler is not None:
        learner.scaler.unscale_(learner.optimizer)  # before clipping, which fused optimisers would leave to their step
    method.before_optimizer(progress)
    if progress.step < config.optim.heads_first:
        hold_backbones(method)
    if learner.masks is not None:
        learner.masks.before_step(progress)
    trained = [p for p in method.parameters() if p.requires_grad]
    total = clip_gradients(trained, config.optim.clip, config.method.clip_per_tensor)
    told = torch.stack([total.to(losses), *losses]).cpu().tolist()  # here alone a step waits for the device
    finite = all(map(math.isfinite, told))
    if finite:
        learner.step_optimizer()
        if learner.masks is not None:
            learner.masks.after_optimizer(learner.optimizer)
    else:
        learner.skip_optimizer()
    learner.optimizer.zero_grad()  # before the next forward pass, whose activations take the most memory
    if finite:
        method.after_step(progress)
        if learner.masks is not None:
            learner.masks.after_step()
    return told[0], told[1], finite


def mean_over_ranks(fabric: Fabric, loss: Tensor, penalties: Mapping[str, Tensor]) -> Tensor:
    """Average over all ranks [2]: the method's loss [], and the same with the penalties, which is what is minimised."""
    both = torch.stack([loss, sum((each.to(loss) for each in penalties.values()), loss)])
    mean = fabric.all_reduce(both, reduce_op="mean")
    assert isinstance(mean, Tensor)  # as what was given
    return mean


def mean_penalties(extra: list[Penalties]) -> dict[str, Tensor]:
    """Average penalties over the parts of a step; each part counts, whether it had this penalty or not."""
    names = dict.fromkeys(name for penalties in extra for name in penalties)
    found = {name: [each[name].detach() for each in extra if name in each] for name in names}
    return {name: torch.stack(values).sum() / len(extra) for name, values in found.items()}


def sum_noted(extra: list[Penalties]) -> dict[str, Noted]:
    """Add up counts over the parts of a step."""
    found: dict[str, Noted] = {}
    for name, (counts, say) in (item for penalties in extra for item in penalties.noted.items()):
        found[name] = Noted(found[name].counts + counts if name in found else counts, say)
    return found
