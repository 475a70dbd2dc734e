"""Training a detector or a segmenter on scenes: the same steps to the bit after a kill."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_vit.backbones.composite import AUXILIARY, composite_of
from ssl_vit.data.readers import worker_count
from ssl_vit.data.scenes import SceneDataset, training_scenes
from ssl_vit.detectors.learner import Learner, S
from ssl_vit.errors import RunFailed
from ssl_vit.files import write_whole
from ssl_vit.progress import progress
from ssl_vit.schedules import noise_seed, warmup_cosine
from ssl_vit.settings import MAX_BAD

WEIGHT_DECAY, CLIP = 0.05, 1.0  # of AdamW, for weights but not for biases and norms; largest norm of the gradients
WARMUP = 0.1  # of the steps; at most LONGEST_WARMUP of them
LONGEST_WARMUP = 500
SAVE_EVERY = 60.0  # seconds between two checkpoints

log = logging.getLogger("ssl_vit")


@dataclass(frozen=True)
class SceneRecipe:
    """The recipe says how long a learner learns, and how fast: AdamW, warmed up, then falling to 0 as a cosine."""

    steps: int
    batch: int
    lr: float
    backbone_lr: float
    seed: int
    max_bad: float = MAX_BAD


def train_on_scenes(
    learner: Learner[S],
    dataset: SceneDataset[S],
    chosen: NDArray[np.int64],
    recipe: SceneRecipe,
    *,
    checkpoint: Path | None = None,
    title: str = "learner",
) -> None:
    """Train a learner, on the device it is on, with the scenes of the chosen images; it ends in evaluation mode.

    Order, augmentation and noise are functions of (seed, step). checkpoint: a file that is written now and then, and
    gone on from where it is there; the result is the same to the bit. The caller removes it.

    Raises:
        RunFailed: the loss is not finite, or too many images can't be read.
    """
    optimizer = torch.optim.AdamW(_groups(learner, recipe), weight_decay=WEIGHT_DECAY, fused=True)
    first = _resume(checkpoint, learner, optimizer)
    batch, workers = min(recipe.batch, len(chosen)), worker_count(None, recipe.steps * recipe.batch)
    scenes = training_scenes(
        dataset,
        chosen,
        batch_size=batch,
        steps=recipe.steps,
        seed=recipe.seed,
        first=first,
        workers=workers,
        max_bad=recipe.max_bad,
    )
    warmup = min(LONGEST_WARMUP, max(1, round(WARMUP * recipe.steps)))
    learner.train()
    saved = mark = time.monotonic()
    with progress(title, recipe.steps * batch, first * batch) as advance:
        for step, readable in enumerate(scenes, start=first):
            waited = time.monotonic() - mark
            share = warmup_cosine(1.0, 0.0, step + 1, recipe.steps + 1, warmup)
            torch.manual_seed(noise_seed(recipe.seed, step, 0))
            if len(readable) >= learner.least:
                _descend(learner, optimizer, readable, share, f"{title}, step {step}")
            if checkpoint is not None and time.monotonic() - saved > SAVE_EVERY:
                _save(checkpoint, learner, optimizer, step + 1)
                saved = time.monotonic()
            advance(batch, waited)
            mark = time.monotonic()
    learner.eval()


def _descend(learner: Learner[S], optimizer: torch.optim.Optimizer, scenes: list[S], share: float, where: str) -> None:
    """Take one step down the sum of its losses at a share of the peak rates; RunFailed if not finite."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
    loss = torch.stack(_parts(learner, scenes)).sum()
    if not torch.isfinite(loss):
        raise RunFailed(f"{where}: the loss is {loss.item()}; lower --lr")
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
    nn.utils.clip_grad_norm_(learner.parameters(), CLIP)
    optimizer.step()


def _parts(learner: Learner[S], scenes: list[S]) -> list[Tensor]:
    """The parts of the loss; in a composite also those of the maps of each network that assists, by the same head."""
    parts = list(learner.losses(scenes).values())
    composite = composite_of(learner.trunk())
    if composite is None:
        return parts
    for place in range(composite.assistants):
        with composite.instead(place):
            parts += [AUXILIARY * part for part in learner.losses(scenes).values()]
    composite.forget()
    return parts


def _groups(learner: Learner[S], recipe: SceneRecipe) -> list[dict[str, object]]:
    """Backbone and head, each with and without weight decay; "peak" is the largest learning rate."""
    trunk = {id(parameter) for parameter in learner.trunk().parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in learner.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in trunk, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": own, "peak": recipe.backbone_lr if of_trunk else recipe.lr}
        | ({} if decays else {"weight_decay": 0.0})
        for (of_trunk, decays), own in groups.items()
    ]


def _save(path: Path, learner: Learner[S], optimizer: torch.optim.Optimizer, step: int) -> None:
    state = {"step": step, "model": learner.state_dict(), "optimizer": optimizer.state_dict()}
    write_whole(path, lambda file: torch.save(state, file))


def _resume(path: Path | None, learner: Learner[S], optimizer: torch.optim.Optimizer) -> int:
    """The step to go on with."""
    if path is None or not path.is_file():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    learner.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    log.info("%s: going on at step %d", path, state["step"])
    return int(state["step"])
