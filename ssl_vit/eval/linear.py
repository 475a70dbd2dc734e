"""A linear classifier on frozen features, its learning rate chosen on a part of the training set alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_vit.errors import UserError
from ssl_vit.eval.job import Job, Outcome
from ssl_vit.schedules import cosine

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
EPOCHS, BATCH = 100, 256
CLASSIFIER = f"softmax on standardised features, SGD momentum 0.9, cosine, {EPOCHS} epochs, batch {BATCH}"
_HELD_OUT = 0.1  # of each class of the training set, to choose the rate


@dataclass(frozen=True)
class LinearProbe:
    """A probe is a linear classifier that has seen a training set and nothing else."""

    rate: float  # the learning rate that was best on the held-out part
    held_out: dict[float, float]  # percent of the held-out images, by rate
    scaling: Scaling
    weights: Tensor  # [D + 1, C], the bias last

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.int64]:
        """Each row of features [M, D] gets its class [M]."""
        found: NDArray[np.int64] = (self.scaling(features, self.weights.device) @ self.weights).argmax(1).cpu().numpy()
        return found

    def affine(self) -> tuple[Tensor, Tensor]:
        """The classifier as weights [D, C] and bias [C] takes features as they are, not standardised."""
        mean, deviation = (
            torch.from_numpy(each).to(self.weights) for each in (self.scaling.mean, self.scaling.deviation)
        )
        weights = self.weights[:-1] / deviation[:, None]
        return weights, self.weights[-1] - mean @ weights


@dataclass(frozen=True)
class Scaling:
    """A scaling has the mean and deviation [D] of a training set."""

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]

    @classmethod
    def of(cls, features: NDArray[np.float32]) -> Scaling:
        """The features [N, D] give mean and deviation; a constant dimension stays (almost) constant."""
        deviation = features.std(0)
        return cls(features.mean(0), np.maximum(deviation, 1e-4 * deviation.mean() + 1e-12))

    def __call__(self, features: NDArray[np.float32], device: torch.device | str = "cpu") -> Tensor:
        """Features [M, D] are standardised and get a column of ones for the bias, [M, D + 1]."""
        ones = np.ones((len(features), 1), dtype=np.float32)
        return torch.from_numpy(np.hstack([(features - self.mean) / self.deviation, ones])).float().to(device)


def score(job: Job) -> Outcome:
    """The kind "linear" gives top-1 in percent; its classifier is settled before an image of val is read."""
    train, val = job.labelled()
    bank = job.features(train, "train")
    probe = fit_linear(bank.features, bank.labels, seed=job.seed, device=job.device, dtype=job.dtype)
    tested = job.features(val, "val")
    correct = probe.predict(tested.features) == tested.labels
    return Outcome(
        scores={"top1": percent(correct), "lr": probe.rate},
        settings={
            "classifier": CLASSIFIER,
            "lr_chosen_on": "a tenth of each class of train; then trained again on all of train",
        },
        seed=job.seed,
        more={"held_out": {str(rate): accuracy for rate, accuracy in probe.held_out.items()}},
        correct=correct,
    )


def percent(correct: NDArray[np.bool_]) -> float:
    """The share of answers [M] that are right comes in percent."""
    return 100 * int(correct.sum()) / len(correct)


def fit_linear(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    rates: Sequence[float] = RATES,
    epochs: int = EPOCHS,
    batch_size: int = BATCH,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LinearProbe:
    """Train softmax regression by SGD as DINO does (arXiv 2104.14294): momentum 0.9, no decay, cosine to 0.

    All rates are trained at once on the same batches, one product for all of them, on 90 % of each class; the best
    on the other 10 % (on a draw, the one with the lower loss) is trained again on the whole training set. There is no
    place for a test set here. Features are cached, so there is no augmentation, and standardised by the training
    set's mean and deviation, as the normalisation before MAE's probe does (arXiv 2111.06377), so that the same rates
    suit features of any scale.

    Args:
        features: [N, D].
        labels: [N], class indices from 0.
        rates: learning rates at this batch size.
        epochs: passes over the training set.
        batch_size: images a step.
        seed: of the held-out part and the order of the images.
        device: where it runs; the result is the same to rounding.
        dtype: of the products; the weights stay float32.

    Raises:
        UserError: no class has two images, so nothing can be held out.
    """
    tried = trial(features, labels, rates, epochs, batch_size, seed, device, dtype)
    best = min(tried, key=lambda rate: tried[rate])
    probe = settle(features, labels, best, epochs, batch_size, seed, device, dtype)
    return replace(probe, held_out={rate: -worst for rate, (worst, _) in tried.items()})


def settle(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    rate: float,
    epochs: int = EPOCHS,
    batch_size: int = BATCH,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LinearProbe:
    """The classifier is trained at one rate on all features [N, D] and labels [N] that are given."""
    scaling, classes = Scaling.of(features), int(labels.max()) + 1
    x, y = scaling(features, device), torch.from_numpy(labels).to(device)
    (weights,) = train(x, y, (rate,), classes, epochs, batch_size, seed, dtype)
    return LinearProbe(rate, {}, scaling, weights)


def trial(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    rates: Sequence[float] = RATES,
    epochs: int = EPOCHS,
    batch_size: int = BATCH,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[float, tuple[float, float]]:
    """Each rate gets what it reaches on the held-out part, the least the best: (-accuracy in percent, loss)."""
    x, y = Scaling.of(features)(features, device), torch.from_numpy(labels).to(device)
    fit, held_out = (torch.from_numpy(part).to(device) for part in hold_out(labels, seed))
    weights = train(x[fit], y[fit], rates, int(labels.max()) + 1, epochs, batch_size, seed, dtype)
    x, y = x[held_out], y[held_out]
    found = {}
    for rate, logits in zip(rates, x @ weights, strict=True):
        accuracy = 100 * int((logits.argmax(1) == y).sum()) / len(y)
        found[rate] = -accuracy, torch.nn.functional.cross_entropy(logits, y).item()
    return found


def hold_out(labels: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices are split into those to fit on and those held out: a tenth of each class, at least one where it has two.

    >>> fit, held_out = hold_out(np.repeat([0, 1, 2], [20, 4, 1]), seed=0)
    >>> np.bincount(np.repeat([0, 1, 2], [20, 4, 1])[held_out], minlength=3)
    array([2, 1, 0])
    """
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        held_out[members[: min(max(round(_HELD_OUT * len(members)), 1), len(members) - 1)]] = True
    if not held_out.any():
        raise UserError("linear: every class has a single training image; give at least two of some class, or use knn")
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def train(
    features: Tensor,
    labels: Tensor,
    rates: Sequence[float],
    classes: int,
    epochs: int = EPOCHS,
    batch_size: int = BATCH,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Train one classifier a rate, weights [R, D + 1, C]; all start at zero and see the same batches.

    features [N, D + 1], labels [N]; dtype is that of the products, the weights stay float32.
    """
    weights = features.new_zeros(features.shape[1], len(rates), classes)
    velocity, rate, inputs = torch.zeros_like(weights), features.new_tensor(rates), features.to(dtype)
    generator = torch.Generator().manual_seed(seed)
    step, total = 0, epochs * math.ceil(len(features) / batch_size)
    for _ in range(epochs):
        order = torch.randperm(len(features), generator=generator).to(features.device)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            descend(weights, velocity, inputs[batch], labels[batch], rate, cosine(1.0, 0.0, step, total))
            step += 1
    return weights.transpose(0, 1)


def descend(weights: Tensor, velocity: Tensor, x: Tensor, labels: Tensor, rate: Tensor, share: float) -> None:
    """Take one step of SGD with momentum 0.9 for R classifiers at once, in place.

    weights, velocity: [D + 1, R, C]; x: [B, D + 1], its dtype is that of the products; rate: [R], times `share`.
    """
    logits = (x @ weights.flatten(1).to(x.dtype)).view(len(x), *weights.shape[1:])
    error = logits.softmax(2, dtype=torch.float32)
    error[torch.arange(len(x), device=x.device), :, labels] -= 1  # the gradient of cross-entropy by the logits
    velocity.mul_(0.9).add_((x.T @ error.flatten(1).to(x.dtype)).view_as(velocity), alpha=1 / len(x))
    weights.addcmul_(rate[:, None], velocity, value=-share)
