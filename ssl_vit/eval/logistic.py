"""Logistic regression to its optimum by L-BFGS, its regularisation chosen on a part of the training set alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_vit.device import widest
from ssl_vit.eval.job import Job, Outcome
from ssl_vit.eval.linear import LinearProbe, Scaling, hold_out, percent

STRENGTHS = tuple(10.0**power for power in range(-4, 3))  # C: how much the data count against the regulariser


def score(job: Job) -> Outcome:
    """The kind "logistic" gives top-1 in percent; its classifier is settled before an image of val is read."""
    train, val = job.labelled()
    bank = job.features(train, "train")
    probe = fit_logistic(bank.features, bank.labels, seed=job.seed, device=job.device)
    tested = job.features(val, "val")
    correct = probe.predict(tested.features) == tested.labels
    return Outcome(
        scores={"top1": percent(correct), "C": probe.rate},
        settings={
            "classifier": "C x sum of cross-entropies + half the squared weights, standardised features, L-BFGS",
            "C_chosen_on": "a tenth of each class of train; then trained again on all of train",
        },
        seed=job.seed,
        more={"held_out": {str(c): accuracy for c, accuracy in probe.held_out.items()}},
        correct=correct,
    )


def fit_logistic(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> LinearProbe:
    """Choose the best C of ``strengths`` on a tenth of each class (on a draw the smallest), then fit all of train.

    features [N, D] are standardised; labels [N] are class indices from 0. ``rate`` of the result is C.

    Raises:
        UserError: no class has two images, so nothing can be held out.
    """
    scaling, classes = Scaling.of(features), int(labels.max()) + 1
    x, y = scaling(features, device).to(widest(torch.device(device))), torch.from_numpy(labels).to(device)
    fit, held_out = (torch.from_numpy(part).to(device) for part in hold_out(labels, seed))
    found = {}
    for strength in strengths:
        weights = optimum(x[fit], y[fit], strength, classes)
        found[strength] = percent(((x[held_out] @ weights).argmax(1) == y[held_out]).cpu().numpy())
    best = max(strengths, key=lambda strength: (found[strength], -strength))
    return LinearProbe(best, found, scaling, optimum(x, y, best, classes).float())


def optimum(x: Tensor, labels: Tensor, strength: float, classes: int) -> Tensor:
    """The weights [D + 1, C] minimise C x sum of cross-entropies + |w|^2 / 2; the last row, the bias, is free.

    scikit-learn's ``LogisticRegression(C)`` has the same optimum. x: float64 [N, D + 1], the last column ones.
    """
    weights = x.new_zeros(x.shape[1], classes, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weights],
        max_iter=1000,
        max_eval=2000,
        history_size=20,
        tolerance_grad=1e-8,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )
    scale = 1 / (strength * len(x))  # the mean cross-entropy has gradients of about one whatever C and N are

    def closure() -> Tensor:
        solver.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weights, labels) + 0.5 * scale * weights[:-1].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]  # torch has no types for it
    return weights.detach()
