"""Fine-tuning: the whole network learns the classes, with timm's recipe (layer decay, mixup, smoothed labels)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.optim._optim_factory import create_optimizer_v2
from torch import nn

from ssl_vit.data.augment import normalise
from ssl_vit.data.batch import to_views
from ssl_vit.data.evalset import EvalDataset, EvalLoader
from ssl_vit.data.inventory import known_by
from ssl_vit.data.loader import steps_per_epoch
from ssl_vit.data.sources import Source
from ssl_vit.errors import RunFailed
from ssl_vit.eval import finetune_recipe as recipe
from ssl_vit.eval.augmented import SCALE, crops
from ssl_vit.eval.features import evaluating
from ssl_vit.eval.job import Job, Outcome
from ssl_vit.eval.kinds.finetune import Finetune
from ssl_vit.eval.labelled import check_every_class
from ssl_vit.eval.linear import percent
from ssl_vit.eval.protocol import Side
from ssl_vit.eval.readout import Readout
from ssl_vit.progress import progress
from ssl_vit.schedules import warmup_cosine

WARMUP = 0.05  # share of the steps


def score(job: Job, asked: Finetune) -> Outcome:
    """The kind "finetune" gives top-1 of the last step's network in evaluation mode; nothing is chosen on val."""
    train, val = job.labelled()
    model = fitted(job, train, asked)
    correct, left_out = scored(model, val, job.readout, job.device)
    job.saw("train", Side(len(train), 0, *known_by(train)))
    job.saw("val", Side(len(correct), left_out, *known_by(val)))
    settings = {
        "classifier": "the whole network and timm's own head",
        "optimizer": f"{'AdamW' if asked.optimizer == 'adamw' else 'SGD'}, lr {asked.lr} x batch / 256, layer decay "
        f"{asked.layer_decay}, weight decay {asked.weight_decay}",
        "schedule": f"{asked.epochs} epochs, batch {asked.batch}, {WARMUP:.0%} of them warming up, cosine to 0",
        "train_transform": f"random crop of {SCALE} of the area, mirrored half the time",
    } | recipe.said(asked)
    return Outcome({"top1": percent(correct)}, settings, seed=job.seed, correct=correct)


def fitted(job: Job, source: Source, asked: Finetune) -> nn.Module:
    """A copy of the job's network gets a new head, [B, 3, S, S] -> [B, C], and learns the whole source."""
    readout, device, batch = job.readout, job.device, asked.batch
    loader = crops(source, readout.image_size, asked.epochs, batch, job.seed, device)
    torch.manual_seed(job.seed)
    learner = recipe.Learner(job, source, asked)
    optimizer = _optimizer(learner, asked)
    augment, labels = recipe.augmenting(asked), torch.from_numpy(source.labels).long()
    total, per_epoch = len(loader), steps_per_epoch(len(source), batch)
    with seeded(job.seed), progress("fine-tuning", total * batch) as advance:
        for step, each in enumerate(loader):
            rate = warmup_cosine(asked.lr * batch / 256, 0.0, step + 1, total, max(1, round(WARMUP * total)))
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)
            augment(each)
            images = to_views(each, readout.mean, readout.std, device)[0]
            loss = learner.loss(images, labels[each.index].to(device))
            if not torch.isfinite(loss):
                raise RunFailed(f"finetune: the loss is {loss.item()} in epoch {step // per_epoch}; lower --lr")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
            optimizer.step()
            advance(len(each.index))
    return learner.model  # type: ignore[no-any-return]  # a module of timm's, which has no types


def _optimizer(learner: recipe.Learner, asked: Finetune) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum 0.9, with timm's layer decay; a head on patches has the whole rate."""
    options: dict[str, Any] = {"lr": asked.lr, "weight_decay": asked.weight_decay, "layer_decay": asked.layer_decay}
    found = create_optimizer_v2(learner.model, opt="adamw" if asked.optimizer == "adamw" else "momentum", **options)
    if learner.diversity is not None:
        found.add_param_group({"params": list(learner.diversity.head.parameters())})
    return found


def scored(model: nn.Module, source: Source, readout: Readout, device: torch.device) -> tuple[NDArray[np.bool_], int]:
    """Each readable image, as it is, is told right (True) or wrong [M]; the number says how many could not be read."""
    loader = EvalLoader(EvalDataset(source, readout.image_size), readout.batch_size, max_bad=1.0)
    right, seen, left_out = list[NDArray[np.bool_]](), list[NDArray[np.int64]](), 0
    with evaluating(model), torch.inference_mode(), progress("scoring", len(source)) as advance:
        for batch in loader:
            left_out += len(batch.unread)
            if len(batch.index):
                logits = model(normalise(batch.images.to(device), readout.mean, readout.std))
                right.append((logits.argmax(1).cpu() == batch.labels).numpy())
                seen.append(batch.labels.numpy())
            advance(len(batch.index) + len(batch.unread))
    check_every_class(np.concatenate([np.empty(0, np.int64), *seen]), source)
    return np.concatenate(right), left_out


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the global generators that timm's augmentation draws from have this seed; they are left as they were."""
    before = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before[0])
        random.setstate(before[1])
