"""What a classifier on frozen features still sees when images are corrupted, hidden, shuffled or attacked.

It learns from clean images and is settled before an image of val is read; all that follows only asks it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_vit.data.crops import sample_rng
from ssl_vit.data.evalset import Alteration
from ssl_vit.data.sources import Source
from ssl_vit.eval.attacks import PGD_STEPS, attacked
from ssl_vit.eval.corruptions import CORRUPTIONS, corrupt
from ssl_vit.eval.job import Job, Outcome
from ssl_vit.eval.kinds.robustness import Robustness
from ssl_vit.eval.linear import LinearProbe, percent
from ssl_vit.eval.logistic import fit_logistic

CELLS = 14  # a side of the grid that is hidden from: the patches of a ViT with patches of 16 pixels at 224


def score(job: Job, asked: Robustness) -> Outcome:
    """The kind "robustness" gives top-1 in percent of clean images, and of every kind of changed ones."""
    train, val = job.labelled()
    bank = job.features(train, "train")
    probe = fit_logistic(bank.features, bank.labels, seed=job.seed, device=job.device)
    clean = job.features(val, "val")
    correct = probe.predict(clean.features) == clean.labels

    def top1(title: str, alter: Alteration) -> float:
        found = job.altered(val, alter, title)
        return percent(probe.predict(found.features) == found.labels)

    scores: dict[str, Any] = {"clean": percent(correct)} | _corruptions(job.seed, asked, percent(correct), top1)
    scores["hidden"] = {f"{part:g}": top1(f"{part:g} % hidden", partial(hidden, part, job.seed)) for part in asked.hide}
    scores["shuffled"] = {str(n): top1(f"{n} x {n} shuffled", partial(shuffled, n, job.seed)) for n in asked.shuffle}
    scores["fgsm"] = _attacks(job, val, probe, asked.radius, 1)
    scores["pgd"] = _attacks(job, val, probe, asked.radius, PGD_STEPS)
    settings = {
        "classifier": "logistic regression on clean train, C chosen on a tenth of it",
        "corruptions_of": "ImageNet-C (arXiv 1903.12261); frost drawn, not photographed",
        "severities": list(asked.severities),
        "hidden": f"percent of {CELLS} x {CELLS} cells at the image's mean colour",
        "attacks": f"largest change in 255ths; PGD {PGD_STEPS} steps from a random start",
    }
    return Outcome(scores, settings, seed=job.seed, more={"C": probe.rate}, correct=correct)


def _corruptions(
    seed: int, asked: Robustness, clean: float, top1: Callable[[str, Alteration], float]
) -> dict[str, Any]:
    """Top-1 in percent by corruption and severity, and two means over all of them where there are any."""
    names: tuple[str, ...] = tuple(CORRUPTIONS) if asked.corruptions == ("all",) else asked.corruptions
    if names == ("none",):
        return {"corruptions": {}}
    found = {
        name: {str(level): top1(f"{name} {level}", partial(corrupted, name, level, seed)) for level in asked.severities}
        for name in names
    }
    error = float(np.mean([100 - value for levels in found.values() for value in levels.values()]))
    return {
        "mean_corruption_error": error,
        "mean_corruption_loss": error - (100 - clean),
        "corruptions": found,
    }


def _attacks(job: Job, val: Source, probe: LinearProbe, radius: tuple[float, ...], steps: int) -> dict[str, float]:
    return {
        f"{each:g}": percent(
            attacked(job.backbone, val, job.readout, probe, each / 255, steps, seed=job.seed, device=job.device)
        )
        for each in radius
    }


def corrupted(name: str, severity: int, seed: int, image: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    """The image gets one of ImageNet-C's corruptions; each image, name and severity has random numbers of its own."""
    return corrupt(image, name, severity, sample_rng(seed, severity, index, stream=list(CORRUPTIONS).index(name)))


def hidden(share: float, seed: int, image: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    """Some percent of the cells of a grid, drawn at random, get the mean colour (arXiv 2103.14586, 2105.10497).

    >>> image = np.arange(28 * 28 * 3).reshape(28, 28, 3).astype(np.uint8)
    >>> int((hidden(50, 0, image, 0) == image.mean((0, 1)).astype(np.uint8)).all(2).sum())
    392
    """
    cells = np.zeros(CELLS * CELLS, bool)
    cells[sample_rng(seed, 0, index).permutation(len(cells))[: round(share / 100 * len(cells))]] = True
    rows, columns = (np.arange(side) * CELLS // side for side in image.shape[:2])
    covered = cells.reshape(CELLS, CELLS)[rows[:, None], columns]
    return np.where(covered[..., None], image.mean((0, 1)).astype(np.uint8), image)


def shuffled(count: int, seed: int, image: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    """The image is cut into count x count tiles that change places; what doesn't fit in whole tiles stays.

    >>> image = np.arange(16).reshape(4, 4, 1).repeat(3, 2).astype(np.uint8)
    >>> sorted(shuffled(2, 0, image, 0)[..., 0].ravel().tolist()) == list(range(16))
    True
    """
    height, width = (side // count for side in image.shape[:2])
    tiles = image[: height * count, : width * count].reshape(count, height, count, width, 3).swapaxes(1, 2)
    order = sample_rng(seed, 0, index).permutation(count * count)
    moved = tiles.reshape(-1, height, width, 3)[order].reshape(tiles.shape)
    result = image.copy()
    result[: height * count, : width * count] = moved.swapaxes(1, 2).reshape(height * count, width * count, 3)
    return result
