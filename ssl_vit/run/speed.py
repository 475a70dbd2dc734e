"""How long a run takes: some of its own steps are measured before it begins, and all of their state is thrown away.

Nothing of it reaches the run: its method is built anew from the seed, and every step draws from its own number.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssl_vit import device
from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.checkpoints.inspection import Inspection
from ssl_vit.config import ResolvedConfig
from ssl_vit.data.crops import sample_rng
from ssl_vit.data.joined import JoinedSource
from ssl_vit.data.loader import Loader, build_loader, steps_per_epoch
from ssl_vit.data.plan import ViewPlan
from ssl_vit.data.readers import worker_count
from ssl_vit.data.sources import Source
from ssl_vit.eval.features import extract
from ssl_vit.eval.readout import Readout
from ssl_vit.eval.yardstick import Labelled, passes, yardstick_for
from ssl_vit.export.api import hand_over
from ssl_vit.run.finish import description
from ssl_vit.run.prepare import new_method
from ssl_vit.run.sizes import plans_of_run
from ssl_vit.training.checkpoint import Checkpoints
from ssl_vit.training.fabric import new_fabric
from ssl_vit.training.looks.checkup import Checkup
from ssl_vit.training.separation import HeldBack
from ssl_vit.training.step import Learner, take_step

SECONDS = 3.0  # for the steps, at the least where the run's length follows from them
_WARM, _CHECKED, _FEWEST, _MOST = 1, 2, 2, 200  # steps that are left out, that are checked too, and that count
_SCORED = 256  # images of each set that are scored, at most
_YEAR = 365 * 86400.0


def clock() -> float:
    """Seconds, of a clock that never goes back."""
    return time.monotonic()


class Compared(NamedTuple):
    """What it takes to compare a run with its start, in seconds an image; see ``eval.yardstick``."""

    read: float = 0.0
    score: float = 0.0
    size: int = 1  # of an image, pixels
    batch: int = 1  # images a step
    most: int = 0  # images that there are
    on_its_way: bool = False  # and not at its ends alone

    def total(self, steps: int, looks: int) -> float:
        """Seconds in a run of so many steps, and so many looks on its way."""
        images = min(self.most, passes(steps * self.batch, self.size))
        return images * (self.read + self.score * (3 + looks if self.on_its_way else 2))


@dataclass(frozen=True)
class Speed:
    """What the parts of a run take, in seconds."""

    step: float  # the mean over a run, where its crops grow
    steps: int  # that were measured
    check: float = 0.0
    score: float = 0.0  # 0 where there is nothing to score on
    save: float = 0.0
    begin: float = 0.0  # until the first step is done, without a score
    end: float = 0.0  # after the last one
    compared: Compared = Compared()  # noqa: RUF009 - frozen, so that sharing it is safe

    def total(self, steps: int, per_epoch: int, every: Mapping[str, Any]) -> float:
        """Seconds from the building of the model to the end of a run of so many steps; every: its intervals, by key."""
        scored = max(1, round(every["health.knn_every"] * per_epoch))
        saves, checks, scores = (
            -(-steps // each) for each in (every["train.checkpoint_every"], every["health.every"], scored)
        )
        looks: float = saves * self.save + checks * self.check + (1 + scores) * self.score
        return self.begin + (steps - 1) * self.step + looks + self.compared.total(steps, scores) + self.end


class AnyBoxes:
    """Regions for methods that need some: which ones does not change the time."""

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """Boxes of an image, by its index."""
        corners = sample_rng(0, 0, index).random((32, 2, 2)).astype(np.float32)
        return np.sort(corners, axis=1).reshape(-1, 4)


def measure(
    config: ResolvedConfig,
    sources: tuple[Source, Source | None],
    weights: Inspection | None,
    beside: Path,
    seconds: float = 0.0,
) -> Speed:
    """Take some steps of a run as it would, on one device, for so many seconds, and time what else it does.

    sources: images to learn from, and labelled ones to score on; beside: the run's folder, on whose disk is saved.
    """
    source, val = sources
    begun = clock()
    fabric = new_fabric(config.train.model_copy(update={"devices": 1, "nodes": 1}))
    fabric.launch()
    method = new_method(config, weights)
    per_epoch = steps_per_epoch(len(source), config.train.batch_size)
    learner = Learner(fabric, method, config, per_epoch, 100 * per_epoch)
    held_back = HeldBack(source, method.views(), config.train.seed, (config.data.mean, config.data.std))
    check = Checkup(None, 1, {}, held_back)
    check.begin(learner, 0)
    lap = _Lap(begun)
    mean, counted, begin = 0.0, 0, 0.0
    plans = plans_of_run(config, method.views(), method.exported().info)
    for share, plan in plans:
        laps, first = _some_steps(_loader(config, source, plan, learner), learner, check, lap, seconds / len(plans))
        step = sum(laps["step"]) / len(laps["step"])
        mean, counted = mean + share * step, counted + len(laps["step"])
        begin += first if not begin else max(0.0, first - step)  # each size has its own beginning
    rest = {"score": _score(config, source, val, learner), "check": min(laps["check"]), "begin": begin}
    rest |= _kept(config, learner, beside, whole=seconds > 0)
    compared = _compared(config, sources, learner)
    del learner, method, check, fabric
    _forget()
    return Speed(step=mean, steps=counted, compared=compared, **rest)


def _some_steps(
    loader: Loader, learner: Learner, check: Checkup, lap: _Lap, seconds: float
) -> tuple[dict[str, list[float]], float]:
    """Seconds of steps, and of checks after some of them, and those until the first step was done."""
    laps: dict[str, list[float]] = {"step": [], "check": []}
    begin = measured_from = 0.0
    for step, batch in enumerate(loader):
        outcome = take_step(learner, batch, learner.per_epoch // 2 + step)
        taken = lap()
        if step < _WARM:
            begin, measured_from = taken, clock()
            continue
        laps["step"].append(taken)
        if step < _WARM + _CHECKED:
            check.after_step(outcome)
            laps["check"].append(lap())
        enough = clock() - measured_from >= seconds or step >= _MOST
        if enough and len(laps["step"]) >= _FEWEST:
            break
    return laps, begin


def _compared(config: ResolvedConfig, sources: tuple[Source, Source | None], learner: Learner) -> Compared:
    """How long a comparison with the start takes, from one of as few images as there can be."""
    begun, (source, val) = clock(), sources
    readout = Readout(config.backbone.image_size, config.data.mean, config.data.std)
    measure = yardstick_for(source, val, readout, 0, config.train.seed)
    read = clock()
    if measure is None:
        return Compared()
    backbone = learner.method.exported()
    measure.score(backbone)
    images = sum(map(len, measure.images()))
    most = 4 * len(source) if not isinstance(measure, Labelled) else len(source) + (len(val) if val is not None else 0)
    own_way = config.backbone.weights is not None and not learner.method.frozen
    spent = (read - begun) / images, (clock() - read) / images
    return Compared(*spent, config.backbone.image_size, config.train.batch_size, most, own_way)


class _Lap:
    """Called at the end of something, gives the seconds since the last call, in which the device has finished too."""

    def __init__(self, begun: float) -> None:
        self._mark = begun

    def __call__(self) -> float:
        device.wait()
        before, self._mark = self._mark, clock()
        return self._mark - before


def _loader(config: ResolvedConfig, source: Source, plan: ViewPlan, learner: Learner) -> Loader:
    train = config.train
    return build_loader(
        source,
        plan,
        batch_size=train.batch_size // (train.devices * train.nodes),
        seed=train.seed,
        total_steps=2**31,
        workers=config.data.workers,
        pin_memory=learner.fabric.device.type == "cuda",
        timeout=config.data.timeout,
        max_bad=config.data.max_bad,
        regions=AnyBoxes(),
    )


def _score(config: ResolvedConfig, source: Source, val: Source | None, learner: Learner) -> float:
    """Seconds of a k-NN score: the features of some images, for all that are asked or answer."""
    if val is None:
        return 0.0
    readout = Readout(config.backbone.image_size, config.data.mean, config.data.std)
    found, backbone = 0.0, learner.method.exported()
    for each in (source, val) if source.classes == val.classes else (val,):
        spent = list[tuple[int, float]]()
        for number in (_SCORED // 4, _SCORED):
            begun, some = clock(), _first(each, number)
            workers = worker_count(None, len(each))
            extract(backbone, some, readout, device=learner.fabric.device, workers=workers)
            spent.append((len(some), clock() - begun))
        (few, less), (many, more) = spent[0], spent[-1]
        slope = max(0.0, more - less) / (many - few) if many > few else 0.0
        found += more + slope * (len(each) - many)
    return found


def _first(source: Source, count: int) -> Source:
    """Its first images, no more than so many; of several sources together those of the first one."""
    part = source.parts[0] if isinstance(source, JoinedSource) else source
    return replace(part, pixels=source.pixels, _ends=part._ends[:count], _labels=part._labels[:count])


def _kept(config: ResolvedConfig, learner: Learner, beside: Path, whole: bool) -> dict[str, float]:
    """Seconds of a checkpoint and of the export, written on the disk of the run and deleted again."""
    with _beside(beside) as folder:
        (folder / "checkpoints").mkdir()
        begun = clock()
        Checkpoints(folder / "checkpoints", 1).save(learner, [], 1)
        saved = clock()
        backbone = learner.method.exported()
        if not whole or not isinstance(backbone, AdaptedBackbone):
            return {"save": saved - begun}
        backbone.info = replace(backbone.info, mean=config.data.mean, std=config.data.std)
        hand_over(backbone, folder / "export", "timm", description(config, learner.method, folder, 1, None, 0))
        return {"save": saved - begun, "end": clock() - saved}


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A folder on the same disk that is gone afterwards."""
    there = next(each for each in out.absolute().parents if each.is_dir())
    with TemporaryDirectory(prefix=".ssl_vit-", dir=there) as folder:
        yield Path(folder)


def _forget() -> None:
    gc.collect()
    device.forget()


def longest(seconds: Callable[[int], float], most: float) -> int:
    """The most steps that take no longer than ``most`` seconds; 0 where a single one does.

    >>> longest(lambda steps: 5 + 2.0 * steps, 60)
    27
    """
    if seconds(1) > most:
        return 0
    low, high = 1, 2
    while seconds(high) <= most:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if seconds(middle) <= most else (low, middle)
    return low


def in_words(seconds: float) -> str:
    """A length of time for people, which ``--time`` reads.

    >>> [in_words(seconds) for seconds in (7.2, 95, 1800, 9000, 100_000)]
    ['8s', '95s', '30m', '2h30m', '27h47m']
    """
    if seconds < 120:
        return f"{max(1, int(-(-seconds // 1)))}s"
    minutes = round(min(seconds, 100 * _YEAR) / 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours}h{rest}m" if hours and rest else f"{hours}h" if hours else f"{rest}m"
