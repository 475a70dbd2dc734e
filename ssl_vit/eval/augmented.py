"""A linear classifier on a frozen network that learns from another random crop of every image in every epoch.

The protocol of DINO's and MoBY's papers (arXiv 2104.14294, 2105.04553), for numbers to compare with published ones;
``linear`` and ``grid``, on cached features, take a small part of the time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.data.batch import to_views
from ssl_vit.data.loader import Loader, build_loader, steps_per_epoch
from ssl_vit.data.plan import View, ViewPlan
from ssl_vit.data.readers import worker_count
from ssl_vit.data.sources import Source
from ssl_vit.eval.features import evaluating
from ssl_vit.eval.job import Job, Outcome
from ssl_vit.eval.kinds.augmented import Augmented
from ssl_vit.eval.linear import LinearProbe, Scaling, descend, hold_out, percent
from ssl_vit.eval.readout import Readout, read_out
from ssl_vit.progress import progress
from ssl_vit.schedules import cosine

SCALE = (0.08, 1.0)  # of the area


def score(job: Job, asked: Augmented) -> Outcome:
    """The kind "augmented" gives top-1 in percent; its classifier is settled before an image of val is read."""
    train, val = job.labelled()
    rates, epochs, batch = asked.lr, asked.epochs, asked.batch
    clean = job.features(train, "train")
    rows = {name: i for i, name in enumerate(clean.files)}
    fit, held_out = (
        hold_out(train.labels.astype(np.int64), job.seed) if len(rates) > 1 else (np.arange(len(train)), None)
    )
    probes = fit_augmented(job.backbone, train, job.readout, fit, rates, epochs, batch, job.seed, job.device)
    best, reached = probes[0], dict[str, float]()
    if held_out is not None:
        known = [rows[name] for i in held_out if (name := train.name(int(i))) in rows]
        features, labels = clean.features[known], clean.labels[known]
        found = [percent(probe.predict(features) == labels) for probe in probes]
        best = probes[int(np.argmax(found))]
        reached = {str(probe.rate): accuracy for probe, accuracy in zip(probes, found, strict=True)}
    tested = job.features(val, "val")
    correct = best.predict(tested.features) == tested.labels
    settings = {
        "classifier": f"softmax, SGD momentum 0.9, cosine, {epochs} epochs, batch {batch}, lr x batch / 256",
        "train_transform": f"random crop of {SCALE} of the area, mirrored half the time",
        "lr": list(rates),
        "lr_chosen_on": "a tenth of each class of train, which is not learnt from" if len(rates) > 1 else "given",
    }
    scores = {"top1": percent(correct), "lr": best.rate}
    return Outcome(scores, settings, seed=job.seed, more={"held_out": reached}, correct=correct)


def crops(source: Source, size: int, epochs: int, batch: int, seed: int, device: torch.device) -> Loader:
    """The loader gives batches of one random crop an image, the same for a seed, whatever the number of workers.

    Raises:
        UserError: fewer images than a batch.
    """
    return build_loader(
        source,
        ViewPlan((View("train", 1, size, scale=SCALE, flip_p=0.5),)),
        batch_size=batch,
        seed=seed,
        total_steps=epochs * steps_per_epoch(len(source), batch),
        workers=worker_count(None, len(source)),
        pin_memory=device.type == "cuda",
        max_bad=1.0,
    )


def fit_augmented(
    backbone: Backbone,
    source: Source,
    readout: Readout,
    fit: NDArray[np.int64],
    rates: Sequence[float],
    epochs: int,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> list[LinearProbe]:
    """Train a classifier for each learning rate, all at once, on the images of the rows ``fit`` alone.

    The backbone runs in evaluation mode; features are taken as they are, as in the papers.
    """
    loader, labels = (
        crops(source, readout.image_size, epochs, batch_size, seed, device),
        torch.from_numpy(source.labels),
    )
    learnt = torch.zeros(len(source), dtype=torch.bool)
    learnt[torch.from_numpy(fit)] = True
    classes, total = len(source.classes), len(loader)
    rate = torch.tensor(rates, device=device) * batch_size / 256
    weights, velocity = torch.empty(0), torch.empty(0)
    with evaluating(backbone), progress("learning from crops", total * batch_size) as advance:
        for step, batch in enumerate(loader):
            kept = learnt[batch.index]
            with torch.inference_mode():
                features = read_out(backbone, to_views(batch, readout.mean, readout.std, device)[0], readout)
            x = torch.cat([features, torch.ones_like(features[:, :1])], 1)[kept.to(device)]
            if not step:
                weights = torch.zeros(x.shape[1], len(rates), classes, device=device)
                velocity = torch.zeros_like(weights)
            y = labels[batch.index][kept].long().to(device)
            if len(y):
                descend(weights, velocity, x, y, rate, cosine(1.0, 0.0, step, total))
            advance(len(batch.index))
    width = len(weights) - 1
    as_it_is = Scaling(np.zeros(width, np.float32), np.ones(width, np.float32))
    return [LinearProbe(each, {}, as_it_is, own) for each, own in zip(rates, weights.unbind(1), strict=True)]
