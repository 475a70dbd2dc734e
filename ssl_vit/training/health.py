"""Is it learning? A few vital signs of a run, and a verdict in plain English."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ssl_vit.training.separation import clearly_above

Kind = Literal["warming up", "learning", "not learning yet", "uniform collapse", "constant-output collapse", "diverged"]

NEAR = 0.01  # of ln K: how close to uniform, or to no entropy at all, counts as there
FLAT = 0.02  # relative spread over images below which features are one and the same vector
STILL = 1e-3  # of their length: features that have moved less are those of the start
CEILING = 0.9  # share of views that find each other above which it can hardly rise
PATIENCE = 3  # checks in a row before a collapse is called one: every run starts near uniform


@dataclass(frozen=True)
class Vitals:
    """What is measured at one check."""

    step: int
    warmup: int  # step at which the learning rate is at its peak
    loss: float  # mean since the check before
    uniform_loss: float | None  # the loss of uniform outputs, where there is such a value
    feature_std: float  # of L2-normalised features over images, times sqrt(D): near 1 when spread out, 0 when constant
    rank: float  # RankMe, the effective number of dimensions
    prototypes: int = 0  # K of the heads below
    heads: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Loss, and entropy of the targets (nats; 0 = always one prototype, ln K = uniform), of each head."""
    blind_loss: float | None = None  # of the best guess that does not look at the image, where that is measured
    remark: str = ""  # the method's own
    views: int = 0  # held back, two an image, of which below is said what the exported features make; 0: none
    own_view: float | None = None  # share that are nearest to their image's other view
    own_view_start: float | None = None  # the same before the first step
    moved: float | None = None  # how far the features of these views are from the first ones, of their length

    @property
    def no_information(self) -> float | None:
        """The loss of outputs that say nothing of the image, where there is such a value."""
        return self.uniform_loss if self.blind_loss is None and self.heads else self.blind_loss


class Verdict(NamedTuple):
    """A kind for programs, a sentence for people."""

    kind: Kind
    sentence: str


@torch.no_grad()
def rank_me(features: Tensor) -> float:
    """Effective rank of features [N, D]: exp of the entropy of their singular values (RankMe, 2210.02885).

    nan where a feature is not finite, or there is none.

    >>> round(rank_me(torch.ones(64, 8)), 2)
    1.0
    >>> round(rank_me(torch.eye(64)[:, :8]), 2)
    8.0
    """
    if not features.numel() or not features.isfinite().all():
        return math.nan
    values = torch.linalg.svdvals(features.cpu().double())
    p = values / values.sum().clamp_min(1e-300)
    return float(torch.special.entr(p).sum().exp())


@torch.no_grad()
def feature_std(features: Tensor) -> float:
    """Spread over images of L2-normalised features [N, D], mean over D, times sqrt(D)."""
    if not features.numel():
        return math.nan
    unit = torch.nn.functional.normalize(features.cpu().double(), dim=-1)
    return float(unit.std(dim=0, correction=0).mean() * unit.shape[1] ** 0.5)


def diagnose(history: Sequence[Vitals], advice: Mapping[str, str]) -> Verdict:
    """The verdict on a run from its checks so far, oldest first; the last must be there.

    advice: what to change, by kind of verdict. Constants and cases come from peers' issue trackers: a loss that stays
    at ln K (8.3178 for 4,096 prototypes, 11.0904 for 65,536) is uniform collapse; an entropy of nothing is one
    constant output. One head of several that collapses is enough.
    """
    now = history[-1]
    kind, found = _state(history)
    return Verdict(kind, " ".join(part for part in (found, advice.get(kind, ""), now.remark) if part))


def _state(history: Sequence[Vitals]) -> tuple[Kind, str]:
    """What a run is in, and by what that is seen."""
    now, recent, first = history[-1], history[-PATIENCE:], history[0]
    if not math.isfinite(now.loss):
        return "diverged", f"The loss is {now.loss}."
    if not all(math.isfinite(each) for each in (now.rank, now.feature_std, now.own_view or 0.0)):
        return "diverged", f"The loss is {now.loss:.3f}, but some of the features are not finite."
    reference = max(first.loss, now.uniform_loss or 0.0, now.blind_loss or 0.0)
    if now.loss > 1.5 * reference > 0:
        return "diverged", f"The loss has risen to {now.loss:.3f}, from {first.loss:.3f}."
    early = f"Too early to say: loss {now.loss:.3f}, effective rank {now.rank:.1f}."
    if now.step <= now.warmup or len(recent) < PATIENCE:
        return "warming up", early
    signs: list[tuple[Kind, Callable[[Vitals], str]]] = [
        ("constant-output collapse", _constant),
        ("uniform collapse", _uniform),
        ("not learning yet", _still),
        ("not learning yet", _blind),
        ("not learning yet", _by_chance),
        ("not learning yet", partial(_no_better, first)),
    ]
    for kind, sign in signs:
        if all(sign(vitals) for vitals in recent):
            return kind, sign(now)
    if any(sign(now) for _, sign in signs):
        return "warming up", early
    against = f" against {now.uniform_loss:.3f} for no information" if now.uniform_loss is not None else ""
    if now.blind_loss is not None:
        against = f" against {now.blind_loss:.3f} for the best guess that doesn't look"
    found = f"The loss is {now.loss:.3f}{against}; features use {now.rank:.1f} effective dimensions."
    return "learning", " ".join(part for part in (found, _separation(now)) if part)


def _uniform(v: Vitals) -> str:
    """A sentence where the outputs of a head are uniform, else ""."""
    for name, (loss, entropy) in v.heads.items():
        top = math.log(v.prototypes)
        if abs(loss - top) < NEAR * top and top - entropy < NEAR * top:
            return (
                f"The {name} loss is {loss:.3f} = ln {v.prototypes}: every image gets the same, uniform output and "
                "nothing is learnt."
            )
    return ""


def _constant(v: Vitals) -> str:
    """A sentence where all images give one feature, or a head one prototype, else ""."""
    if v.rank < 2 and v.feature_std < FLAT:
        return (
            f"All images give one and the same output (loss {v.loss:.3f}, effective rank {v.rank:.1f}): nothing is "
            "learnt."
        )
    for name, (loss, entropy) in v.heads.items():
        if max(loss, entropy) < NEAR * math.log(v.prototypes):
            return f"All images give one and the same output ({name} loss {loss:.3f}): nothing is learnt."
    return ""


def _still(v: Vitals) -> str:
    """A sentence where the features are those of the start, else ""."""
    if v.moved is None or v.moved >= STILL:
        return ""
    return f"The features are those of the start (they have moved by {v.moved:.1g} of their length): nothing is learnt."


def _blind(v: Vitals) -> str:
    """A sentence where the loss is no better than a guess, else ""."""
    if v.no_information is None or v.loss < (1 - NEAR) * v.no_information:
        return ""
    return f"The loss is {v.loss:.3f}, and a guess that doesn't look at the image costs {v.no_information:.3f}."


def _by_chance(v: Vitals) -> str:
    """A sentence where two views of an image find each other no more often than those of two images, else ""."""
    if v.own_view is None or clearly_above(v.own_view, 1 / (v.views - 1), v.views):
        return ""
    return f"The features tell no image from another. {_separation(v)}"


def _no_better(first: Vitals, v: Vitals) -> str:
    """A sentence where nothing is better than it was, else ""; a loss without a blind one says nothing."""
    if v.own_view is None or v.own_view_start is None:
        return ""
    start = v.own_view_start
    if clearly_above(v.own_view, start, v.views) or min(v.own_view, start) > CEILING:
        return ""
    if v.no_information is not None and v.loss < first.loss - NEAR * abs(first.loss):
        return ""
    return f"The loss is {v.loss:.3f}, at first {first.loss:.3f}, and no more is told apart. {_separation(v)}"


def _separation(v: Vitals) -> str:
    """What the features of views that are held back tell apart; "" where that is not measured."""
    if v.own_view is None:
        return ""
    start = f"at the start {v.own_view_start:.0%}, " if v.own_view_start is not None else ""
    return (
        f"Of {v.views} views that are held back {v.own_view:.0%} find their image's other one ({start}by chance "
        f"{1 / (v.views - 1):.0%})."
    )
