"""Is it learning? A few vital signs of a run, and a verdict in plain English."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Kind = Literal["warming up", "learning", "uniform collapse", "constant-output collapse", "diverged"]

NEAR = 0.01  # of ln K: how close to uniform, or to no entropy at all, counts as there
FLAT = 0.02  # relative spread over images below which features are one and the same vector
PATIENCE = 3  # checks in a row before a collapse is called one: every run starts near uniform


@dataclass(frozen=True)
class Vitals:
    """What is measured at one check."""

    step: int
    warmup: int  # step at which the learning rate is at its peak
    loss: float  # mean since the check before
    uniform_loss: float | None  # the loss of uniform outputs (ln K), where there is such a value
    teacher_entropy: float | None  # nats; 0 = always one prototype, ln K = uniform
    feature_std: float  # of L2-normalised features over images, times sqrt(D): near 1 when spread out, 0 when constant
    rank: float  # RankMe, the effective number of dimensions


class Verdict(NamedTuple):
    """A kind for programs, a sentence for people."""

    kind: Kind
    sentence: str


@torch.no_grad()
def rank_me(features: Tensor) -> float:
    """Effective rank of features [N, D]: exp of the entropy of their singular values (RankMe, 2210.02885).

    nan where a feature is not finite.

    >>> round(rank_me(torch.ones(64, 8)), 2)
    1.0
    >>> round(rank_me(torch.eye(64)[:, :8]), 2)
    8.0
    """
    if not features.isfinite().all():
        return math.nan
    values = torch.linalg.svdvals(features.double().cpu())
    p = values / values.sum().clamp_min(1e-300)
    return float(torch.special.entr(p).sum().exp())


@torch.no_grad()
def feature_std(features: Tensor) -> float:
    """Spread over images of L2-normalised features [N, D], mean over D, times sqrt(D)."""
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    return float(unit.std(dim=0, correction=0).mean() * unit.shape[1] ** 0.5)


def diagnose(history: Sequence[Vitals]) -> Verdict:
    """The verdict on a run from its checks so far, oldest first; the last must be there.

    Constants and cases come from peers' issue trackers: a loss that stays at ln K (8.3178 for 4,096 prototypes,
    11.0904 for 65,536) is uniform collapse; an entropy of nothing is one constant output.
    """
    now = history[-1]
    if not math.isfinite(now.loss):
        return Verdict("diverged", f"The loss is {now.loss}: lower optim.lr, or set train.precision=32-true.")
    reference = max(history[0].loss, now.uniform_loss or 0.0)
    if now.loss > 1.5 * reference and reference > 0:
        return Verdict(
            "diverged",
            f"The loss has risen to {now.loss:.3f}, from {history[0].loss:.3f}: lower optim.lr or raise "
            "optim.warmup_epochs.",
        )
    recent = history[-PATIENCE:]
    if len(recent) == PATIENCE and now.step > now.warmup:
        if all(_is_constant(v) for v in recent):
            return Verdict("constant-output collapse", _constant_sentence(now))
        if all(_is_uniform(v) for v in recent):
            return Verdict("uniform collapse", _uniform_sentence(now))
    if now.step <= now.warmup or len(recent) < PATIENCE or _is_constant(now) or _is_uniform(now):
        return Verdict("warming up", f"Too early to say: loss {now.loss:.3f}, effective rank {now.rank:.1f}.")
    return Verdict("learning", _learning_sentence(now))


def _is_uniform(v: Vitals) -> bool:
    if v.uniform_loss is None or v.teacher_entropy is None:
        return False
    margin = NEAR * v.uniform_loss
    return abs(v.loss - v.uniform_loss) < margin and v.uniform_loss - v.teacher_entropy < margin


def _is_constant(v: Vitals) -> bool:
    if v.rank < 2 and v.feature_std < FLAT:
        return True
    if v.uniform_loss is None or v.teacher_entropy is None:
        return False
    return v.teacher_entropy < NEAR * v.uniform_loss and v.loss < NEAR * v.uniform_loss


def _uniform_sentence(v: Vitals) -> str:
    prototypes = round(math.exp(v.uniform_loss or 0.0))
    return (
        f"The loss is {v.loss:.3f} = ln {prototypes}: every image gets the same, uniform output and nothing is "
        "learnt. Lower method.teacher_temp or method.out_dim, or set method.head_norm=batch."
    )


def _constant_sentence(v: Vitals) -> str:
    return (
        f"All images give one and the same output (loss {v.loss:.3f}, effective rank {v.rank:.1f}): nothing is learnt. "
        "Raise method.teacher_temp, lower method.center_momentum or lower optim.lr."
    )


def _learning_sentence(v: Vitals) -> str:
    against = f" against {v.uniform_loss:.3f} for no information" if v.uniform_loss is not None else ""
    return f"The loss is {v.loss:.3f}{against}; features use {v.rank:.1f} effective dimensions."
