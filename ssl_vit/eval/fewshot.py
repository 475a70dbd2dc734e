"""Logistic regression from a few labels a class: mean and interval over draws of the training images."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_vit.errors import UserError
from ssl_vit.eval.intervals import half_interval
from ssl_vit.eval.job import Job, Outcome
from ssl_vit.eval.linear import LinearProbe, Scaling, percent
from ssl_vit.eval.logistic import optimum

C = 1.0  # not chosen: with so few labels there is nothing to choose it on


def score(job: Job, shots: tuple[int, ...], share: tuple[float, ...], draws: int) -> Outcome:
    """The kind "fewshot" gives the mean top-1 and its 95 % interval over draws, by number or share of labels."""
    train, val = job.labelled()
    bank, tested = job.features(train, "train"), job.features(val, "val")
    scores = {}
    asked = [(str(count), float(count)) for count in shots] + [(f"{part:g}%", part / 100) for part in share]
    for name, wanted in asked:
        found = []
        for draw in range(draws):
            rows = drawn(bank.labels, wanted, job.seed + draw)
            probe = fit_probe(bank.features[rows], bank.labels[rows], int(bank.labels.max()) + 1)
            found.append(percent(probe.predict(tested.features) == tested.labels))
        scores[name] = {"mean": float(np.mean(found)), "half_interval": half_interval(found)}
    return Outcome(scores, {"classifier": f"logistic regression, C = {C}", "draws": draws}, seed=job.seed)


def fit_probe(features: NDArray[np.float32], labels: NDArray[np.int64], classes: int) -> LinearProbe:
    """The classifier learns from all features [N, D] and labels [N], 0 to classes - 1, that are given."""
    scaling = Scaling.of(features)
    weights = optimum(scaling(features).double(), torch.from_numpy(labels), C, classes)
    return LinearProbe(C, {}, scaling, weights.float())


def drawn(labels: NDArray[np.int64], wanted: float, seed: int) -> NDArray[np.int64]:
    """The rows that come out hold ``wanted`` images of each class, or that share of them (below 1), at least one.

    >>> np.bincount(np.array([0] * 10 + [1] * 20)[drawn(np.array([0] * 10 + [1] * 20), 0.1, seed=0)])
    array([1, 2])

    Raises:
        UserError: a class has fewer images.
    """
    rng, rows = np.random.default_rng(seed), []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = int(wanted) if wanted >= 1 else max(1, round(wanted * len(members)))
        if count > len(members):
            raise UserError(f"fewshot: a class has {len(members)} training images, fewer than {count}; lower --shots")
        rows.append(rng.permutation(members)[:count])
    return np.concatenate(rows)
