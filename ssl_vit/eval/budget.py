"""What accuracy costs: top-1 against multiply-adds and measured milliseconds, where a network can do with less.

Classifiers are logistic regressions on frozen features, one for each share of patches and one for each exit; exits'
thresholds are fitted to a budget on a tenth of train that their classifiers never saw. All is settled before an image
of val is read.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ssl_vit import device
from ssl_vit.backbones.adaptive import DropsPatches, HasExits, fit_thresholds, leaving
from ssl_vit.backbones.backbone import Backbone, BackboneInfo, Features
from ssl_vit.data.augment import normalise
from ssl_vit.data.evalset import EvalDataset
from ssl_vit.data.sources import Source
from ssl_vit.errors import UserError
from ssl_vit.eval.features import FeatureSet, extract
from ssl_vit.eval.job import Job, Outcome
from ssl_vit.eval.kinds.budget import Budget
from ssl_vit.eval.linear import LinearProbe, hold_out, percent
from ssl_vit.eval.logistic import fit_logistic

KEEP = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
STEPS = 7  # budgets between the first exit's and the last's
BATCHES = (1, 32)
ROUNDS = 5  # of timing, of which the first is not counted
SETTINGS = {
    "classifier": "logistic regression, C chosen on a tenth of train",
    "thresholds_fitted_on": "a tenth of each class of train, that no classifier of an exit saw",
    "milliseconds": f"an image of val, in batches, median of {ROUNDS - 1} rounds in turn",
}


class Point(NamedTuple):
    """A point has a setting's scores, and one pass at that setting, images [B, 3, S, S] in evaluation."""

    scores: dict[str, Any]
    run: Callable[[Tensor], object]


def score(job: Job, asked: Budget) -> Outcome:
    """The kind "budget" gives a list of points, each with ``top1``, ``gmacs`` and milliseconds by batch.

    A network that spends the same on every image gives one point.
    """
    train, val = job.labelled()
    model: Any = getattr(job.backbone, "model", job.backbone)
    if isinstance(model, HasExits):
        _refuse("keep", asked.keep, job, "has exits and drops no patches; set gmacs")
        points = _with_exits(job, model, asked, train, val)
    elif isinstance(model, DropsPatches):
        _refuse("gmacs", asked.gmacs, job, "drops patches and has one exit; set keep")
        points = _dropping(job, model, asked, train, val)
    else:
        _refuse("keep", asked.keep, job, "computes all of every image, which is one point")
        _refuse("gmacs", asked.gmacs, job, "computes all of every image, which is one point")
        points = [_plain(job, {}, train, val, asked.seed)]
    pixels = some_images(job, val, max(BATCHES))
    for scores, spent in zip([point.scores for point in points], timed(points, pixels), strict=True):
        scores["ms"] = spent
    return Outcome({"points": [point.scores for point in points]}, SETTINGS, seed=asked.seed)


def _refuse(name: str, given: Sequence[float], job: Job, why: str) -> None:
    if given:
        raise UserError(f"eval budget: {name}: {job.backbone.info.name} {why}; leave {name} out")


def _plain(job: Job, setting: dict[str, Any], train: Source, val: Source, seed: int) -> Point:
    """The network as it is set now."""
    model: Any = getattr(job.backbone, "model", job.backbone)
    bank = job.features(train, "train")
    probe = fit_logistic(bank.features, bank.labels, seed=seed, device=job.device)
    tested = job.features(val, "val")
    top1 = percent(probe.predict(tested.features) == tested.labels)
    return Point(setting | {"top1": top1, "gmacs": gmacs(model, _grey(job))}, model)


def _dropping(job: Job, model: Any, asked: Budget, train: Source, val: Source) -> list[Point]:
    """A point for each share of patches."""
    patches = job.backbone.info.grid[0] * job.backbone.info.grid[1]
    for share in asked.keep:
        with keeping(model, share):
            try:
                model.counts(patches)
            except ValueError as error:
                raise UserError(f"eval budget: keep: {error}") from error

    def running(share: float) -> Callable[[Tensor], object]:
        def run(images: Tensor) -> object:
            with keeping(model, share):
                return model(images)

        return run

    points = []
    for share in sorted(asked.keep or [each for each in KEEP if _keeps(model, each, patches)]):
        with keeping(model, share):
            point = _plain(job, {"keep": share}, train, val, asked.seed)
        points.append(point._replace(run=running(share)))
    return points


@contextmanager
def keeping(model: DropsPatches, share: float) -> Iterator[None]:
    """Inside, each stage keeps this share of the patches."""
    before, model.keep_ratio = model.keep_ratio, share
    try:
        yield
    finally:
        model.keep_ratio = before


def _keeps(model: DropsPatches, share: float, patches: int) -> bool:
    with keeping(model, share):
        try:
            return bool(model.counts(patches))
        except ValueError:
            return False


def _with_exits(job: Job, model: HasExits, asked: Budget, train: Source, val: Source) -> list[Point]:
    """A point for each budget: thresholds from held-out images of train, scores on val."""
    costs = exit_costs(model, _grey(job))
    for budget in asked.gmacs:
        if budget < costs[0]:
            smallest = f"the first exit takes {costs[0]:.4g} of an image; it must be that or more"
            raise UserError(f"eval budget: gmacs: {budget:g} is too little: {smallest}")
    bank, widths = _exits_of(job, model, train, "train")
    fit, held_out = hold_out(bank.labels, asked.seed)
    probes = [
        fit_logistic(part[fit], bank.labels[fit], seed=asked.seed, device=job.device)
        for part in _split(bank.features, widths)
    ]
    sure = sureness(probes, [part[held_out] for part in _split(bank.features, widths)])
    budgets = sorted(asked.gmacs) or np.linspace(costs[0], costs[-1], STEPS).tolist()
    fitted = [fit_thresholds(sure, costs, budget) for budget in budgets]
    tested, _ = _exits_of(job, model, val, "val")
    answers = np.stack([p.predict(x) for p, x in zip(probes, _split(tested.features, widths), strict=True)])
    confident = sureness(probes, _split(tested.features, widths))
    heads = [_head(probe) for probe in probes]
    points = []
    for budget, least in zip(budgets, fitted, strict=True):
        left = leaving(confident, least).numpy()
        found: dict[str, Any] = {"budget": budget, "sure": [min(each, 1.0) for each in least]}
        found["exits"] = [100 * float((left == number).mean()) for number in range(len(costs))]
        found["top1"] = percent(answers[left, np.arange(len(left))] == tested.labels)
        found["gmacs"] = float(np.array(costs)[left].mean())
        points.append(Point(found, partial(model.answer, sure=least, classifiers=heads)))
    return points


def _head(probe: LinearProbe) -> Callable[[Tensor], Tensor]:
    weights, bias = probe.affine()
    return lambda features: features.float() @ weights.to(features.device) + bias.to(features.device)


class AllExits(Backbone):
    """A cascade whose pooled features are those of all its exits, side by side."""

    def __init__(self, model: HasExits, info: BackboneInfo) -> None:
        super().__init__()
        self.model, self.info = model, info

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Features:
        """Images [B, 3, H, W] without a mask; there are no patches."""
        assert mask is None
        pooled = torch.cat(self.model.read(images), dim=1)
        return Features(pooled, pooled[..., None, None])


def _exits_of(job: Job, model: HasExits, source: Source, side: str) -> tuple[FeatureSet, list[int]]:
    """The features of all exits side by side, and how wide each is."""
    with torch.inference_mode():
        widths = [part.shape[1] for part in model.read(_grey(job))]
    found = extract(AllExits(model, job.backbone.info), source, job.readout, device=job.device, title=f"exits, {side}")
    job.sides[side] = found.side
    return found, widths


def _split(features: NDArray[np.float32], widths: Sequence[int]) -> list[NDArray[np.float32]]:
    return np.split(features, np.cumsum(widths)[:-1].tolist(), axis=1)


def sureness(probes: Sequence[LinearProbe], features: Sequence[NDArray[np.float32]]) -> Tensor:
    """The largest probability that each exit but the last gives each image, [E - 1, N]."""
    found = [_head(probe)(torch.from_numpy(x)).softmax(-1).amax(-1) for probe, x in zip(probes, features, strict=True)]
    return torch.stack(found[:-1]).cpu()


def _grey(job: Job) -> Tensor:
    """An image [1, 3, S, S] of nothing: what is counted does not depend on what it shows."""
    side = job.readout.image_size
    return torch.zeros(1, 3, side, side, device=job.device)


def gmacs(run: Callable[[Tensor], object], images: Tensor) -> float:
    """1e9 multiply-adds of one pass: products of matrices and convolutions."""
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(images)
    return float(counter.get_total_flops()) / 2e9


def exit_costs(model: HasExits, image: Tensor) -> list[float]:
    """1e9 multiply-adds of an image [1, 3, S, S] that leaves at each exit."""
    with torch.inference_mode():
        heads = [_first_two] * len(model.read(image))
    never, always = 1.1, 0.0
    return [
        gmacs(partial(model.answer, sure=sure, classifiers=heads), image)
        for sure in ([never] * number + [always] * (len(heads) - 1 - number) for number in range(len(heads)))
    ]


def _first_two(features: Tensor) -> Tensor:
    """A classifier of two classes that costs nothing."""
    return features[:, :2]


def some_images(job: Job, source: Source, count: int) -> Tensor:
    """So many normalised images of a source, evenly over it, [N, 3, S, S]; fewer where some can't be read."""
    dataset = EvalDataset(source, job.readout.image_size)
    places = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
    read = [image for image in (dataset[int(place)].image for place in places) if image is not None]
    return normalise(torch.stack(read).to(job.device), job.readout.mean, job.readout.std)


def timed(points: Sequence[Point], images: Tensor) -> list[dict[str, float]]:
    """Milliseconds an image by size of batch, for each point; all take turns, to share the machine's moods."""
    spent: list[dict[str, list[float]]] = [{str(batch): [] for batch in BATCHES} for _ in points]
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for point, found in zip(points, spent, strict=True):
                for batch in BATCHES:
                    found[str(batch)].append(_milliseconds(point.run, torch.split(images, batch)) / len(images))
    return [{batch: statistics.median(each[1:]) for batch, each in found.items()} for found in spent]


def _milliseconds(run: Callable[[Tensor], object], batches: Sequence[Tensor]) -> float:
    start = time.perf_counter()
    for batch in batches:
        run(batch)
    device.wait()
    return 1000 * (time.perf_counter() - start)
