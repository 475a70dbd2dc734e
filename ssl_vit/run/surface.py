"""How sharp a run's own loss is where its weights are: in float64, on one device, with the run's views and noise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_vit.config import ResolvedConfig
from ssl_vit.data.batch import Batch
from ssl_vit.data.inventory import known_by
from ssl_vit.data.loader import build_loader
from ssl_vit.data.readers import worker_count
from ssl_vit.data.sources import Source
from ssl_vit.errors import UserError
from ssl_vit.eval.job import Job, Outcome
from ssl_vit.eval.protocol import Side
from ssl_vit.methods.method import Method
from ssl_vit.run.restored import restored
from ssl_vit.run.sharpness import Sharpness
from ssl_vit.run.workspace import RunWorkspace
from ssl_vit.schedules import noise_seed
from ssl_vit.training.landscape import Landscape, filter_normalised, largest_eigenvalue
from ssl_vit.training.step import Learner


def score(job: Job, asked: Sharpness) -> Outcome:
    """The kind "sharpness": the method, its heads and its teacher are those of the run's newest checkpoint."""
    if not (job.weights / "config.yaml").is_file():
        raise UserError(f"{job.weights}: sharpness is that of a run's own loss; give the folder of a run")
    source = job.unlabelled("data")
    learner, checkpoint = restored(job.weights, partial(_prepare, job.weights, source))
    if checkpoint is None:
        raise UserError(f"{job.weights / 'checkpoints'}: empty; the loss needs the method's heads, which lie there")
    step = int(checkpoint.stem.removeprefix("step-"))
    batches, left_out = _batches(learner, source, asked.images)
    read = sum(len(batch.index) for batch in batches)
    job.sides["data"] = Side(read, left_out, *known_by(source))
    method = learner.method.double()
    learner.buffers.keep()
    trained = [p for p in method.parameters() if p.requires_grad]
    landscape = Landscape(trained, [_loss_of(learner, batch, i, step) for i, batch in enumerate(batches)])
    eigenvalue = largest_eigenvalue(landscape, asked.iterations, asked.seed)
    one, two = (filter_normalised(trained, asked.seed + each) for each in (1, 2))
    along = np.linspace(-asked.span, asked.span, asked.places).tolist()
    surface = [[landscape.loss((x, one), (y, two)) for x in along] for y in along]
    scores = {
        "eigenvalue": eigenvalue.value,
        "eigenvalue_found": eigenvalue.found,
        "iterations": eigenvalue.iterations,
        "loss": landscape.loss(),
        "along": along,
        "loss_first": [landscape.loss((x, one)) for x in along],
        "loss_second": [landscape.loss((y, two)) for y in along],
    }
    settings: dict[str, Any] = {
        "loss": f"{learner.config.method.name}'s, after step {step}, in float64 with the run's views and noise",
        "images": read,
        "directions": "random, filter-normalised (arXiv 1712.09913)",
        "eigenvalue": f"Lanczos' iteration, at most {asked.iterations} steps, to a thousandth",
    }
    return Outcome(scores, settings, seed=asked.seed, more={"surface": surface})


def _prepare(run: Path, source: Source, config: ResolvedConfig, method: Method) -> None:
    """What a method makes of images lies in the run."""
    plan, device = method.views(), next(method.parameters()).device
    if plan.boxes:
        raise UserError(f"{run}: {config.method.name} learns from regions that were proposed in its own images alone")
    method.prepare(RunWorkspace(config, run, source, plan, device))


def _batches(learner: Learner, source: Source, images: int) -> tuple[list[Batch], int]:
    """Views of so many images, as the run draws them, in passes of its size; and how many could not be read."""
    train = learner.config.train
    size = train.batch_size // (train.devices * train.nodes * train.accumulate)
    loader = build_loader(
        source,
        learner.method.views(),
        batch_size=size,
        seed=train.seed,
        total_steps=max(1, min(images, len(source)) // size),
        workers=worker_count(None, len(source)),
        max_bad=1.0,
    )
    return list(loader), len(loader.bad.files)


def _loss_of(learner: Learner, batch: Batch, number: int, step: int) -> Callable[[], Tensor]:
    """The method's loss of a batch: the same views and noise at each call, and buffers as they were."""

    def loss() -> Tensor:
        learner.buffers.put_back()  # and not after it: a backward pass may need them as the forward pass left them
        torch.manual_seed(noise_seed(learner.config.train.seed, number, 0))
        views = [each.double() for each in learner.views(batch.to(learner.fabric.device))]
        found: Tensor = learner.method(views, learner.progress(step)).loss
        return found

    return loss
