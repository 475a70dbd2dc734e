"""Where the time of a run would go on this machine, measured on its own images, and what to change."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np
from torch.utils.flop_counter import FlopCounterMode

from ssl_vit import device
from ssl_vit.config import ResolvedConfig, RunConfig, check_data
from ssl_vit.data.batch import Batch
from ssl_vit.data.crops import make_views, sample_rng, wanted_side
from ssl_vit.data.decode import BadImage
from ssl_vit.data.left_out import note_left_out
from ssl_vit.data.loader import build_loader, epoch_order, steps_per_epoch
from ssl_vit.data.sources import Source, open_source, require
from ssl_vit.process import keep_memory
from ssl_vit.report.speed import Parts
from ssl_vit.run.plan import resolve_for
from ssl_vit.run.prepare import new_method, pixels_of
from ssl_vit.run.speed import AnyBoxes
from ssl_vit.training.compiler import compiling
from ssl_vit.training.fabric import new_fabric
from ssl_vit.training.memory import enough_memory, less, memory_is_short
from ssl_vit.training.speed import peak_flops
from ssl_vit.training.step import PARTS, Learner, take_step

READING = ("decode", "views")
SECONDS = 3.0  # for each of the three measurements
_WAITS, _MUCH = 0.1, 0.15  # shares of the time from which on something is said


@dataclass(frozen=True)
class Bench:
    """What was measured; times are milliseconds an image."""

    what: str  # method, backbone, device, precision, batch size
    parts: Parts  # of `READING`, in one process, and of a step
    together: float  # images a second of reading and training
    alone: float  # images a second of training on a batch that is there
    reading: float  # images a second that one process reads
    workers: int
    wait: float  # the share of the time for which training waits for images
    flops: float  # of one image, forward and backward
    busy: float | None  # the share of the device's peak that a step reaches, where that is known
    peak: str  # what that peak is
    advice: tuple[str, ...]

    def __str__(self) -> str:
        total = {name: sum(self.parts[part] for part in parts) for name, parts in (("r", READING), ("s", PARTS))}
        lines = [self.what, "", "reading, in one process:"]
        lines += [
            f"  {part:10} {self.parts[part]:9.2f} ms an image  {self.parts[part] / total['r']:4.0%}" for part in READING
        ]
        lines += ["a training step:"]
        lines += [
            f"  {part:10} {self.parts[part]:9.2f} ms an image  {self.parts[part] / total['s']:4.0%}" for part in PARTS
        ]
        busy = f"{self.busy:.0%} of {self.peak}" if self.busy is not None else f"peak not known ({self.peak})"
        lines += [
            "",
            f"together {self.together:.1f} images/s; a step alone {self.alone:.1f}; {self.workers} reading processes "
            f"of {self.reading:.1f} each; data wait {self.wait:.0%}",
            f"{self.flops / 1e9:.1f} GFLOP an image; {busy}",
            "",
            *self.advice,
        ]
        return "\n".join(lines)


def bench(config: RunConfig) -> Bench:
    """Measure reading, a step, and both together, each for some seconds; nothing is written. Raises UserError."""
    check_data(config)
    note_left_out(source := open_source(config.data.path, config.data.outside_links))
    resolved, _ = resolve_for(config, source)
    source = replace(source, pixels=pixels_of(resolved))
    require(source, resolved.train.batch_size)
    keep_memory()
    with enough_memory(resolved), compiling():
        return _measured(resolved, source)


def _measured(config: ResolvedConfig, source: Source) -> Bench:
    step = _Steps(config, len(source))
    read = _read_times(source, step)
    loader = _loader(source, step)
    together, wait = _together(loader, step)
    parts, flops = _step_times(next(iter(_loader(source, step, workers=0))), step)
    parts = read | parts
    alone, reading = 1000 / sum(parts[p] for p in PARTS), 1000 / sum(parts[p] for p in READING)
    peak, name = peak_flops(step.device, config.train.precision)
    workers = config.data.workers
    busy = alone * flops / peak if peak else None
    what = (
        f"{config.method.name} on {config.backbone.name}, {step.device_name}, {config.train.precision}, "
        f"{step.images} images a step and device"
    )
    advice = tuple(_advice(parts, wait, workers, config))
    return Bench(what, parts, together, alone, reading, workers, wait, flops, busy, name, advice)


class _Steps:
    """Training steps in the middle of a run, whose parts are timed."""

    def __init__(self, config: ResolvedConfig, images: int) -> None:
        self.config = config
        self.fabric = new_fabric(config.train.model_copy(update={"devices": 1, "nodes": 1}))
        self.fabric.launch()
        self.device = self.fabric.device
        self.device_name = device.name()
        method = new_method(config, None)
        self.plan = method.views()
        per_epoch = steps_per_epoch(images, config.train.batch_size)
        self.learner = Learner(self.fabric, method, config, per_epoch, 100 * per_epoch)
        self.number = per_epoch // 2
        self.images = config.train.batch_size // config.train.devices  # of one device
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def __call__(self, batch: Batch) -> None:
        take_step(self.learner, batch, self.number, self.timed)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        device.wait()
        self.seconds[part] += time.perf_counter() - start


def _loader(source: Source, step: _Steps, workers: int | None = None) -> Any:
    config = step.config
    return build_loader(
        source,
        step.plan,
        batch_size=step.images,
        seed=config.train.seed,
        total_steps=2**31,
        workers=config.data.workers if workers is None else workers,
        pin_memory=step.device.type == "cuda",
        max_bad=config.data.max_bad,
        regions=AnyBoxes(),
    )


def _read_times(source: Source, step: _Steps) -> Parts:
    """CPU time of decoding an image and of making its views."""
    order, want = epoch_order(len(source), 0, 0).tolist(), 2 * wanted_side(step.plan)
    begun, spent, images = time.perf_counter(), np.zeros(2), 0
    for number, index in enumerate(cycle(order)):
        enough = time.perf_counter() - begun > SECONDS if images else number > len(order)
        if enough:
            break
        start = time.process_time()
        try:
            image = source.read(index, want=want)
        except BadImage:  # if all are, the loader will say it
            continue
        decoded = time.process_time()
        make_views(image, step.plan, sample_rng(0, 0, index))
        if number:  # the first warms up
            spent += decoded - start, time.process_time() - decoded
            images += 1
    return dict(zip(READING, (1000 * spent / max(images, 1)).tolist(), strict=True))


def _step_times(batch: Batch, step: _Steps) -> tuple[Parts, float]:
    """Milliseconds an image of each part of a step, and the arithmetic of an image."""
    with FlopCounterMode(display=False) as counter:
        step(batch)
    step.seconds = dict.fromkeys(PARTS, 0.0)
    begun, steps = time.perf_counter(), 0
    while steps < 2 or time.perf_counter() - begun < SECONDS:
        step(batch)
        steps += 1
    images = steps * step.images
    return {part: 1000 * spent / images for part, spent in step.seconds.items()}, counter.get_total_flops() / len(
        batch.index
    )


def _together(loader: Any, step: _Steps) -> tuple[float, float]:
    """Images a second of reading and training at once, and the share of the time spent waiting for images."""
    batches = iter(loader)
    step(next(batches))  # processes start, memory is taken
    images, waited, begun = 0, 0.0, time.perf_counter()
    while images < 2 * step.images or time.perf_counter() - begun < SECONDS:
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        step(batch)
        images += step.images
    spent = time.perf_counter() - begun
    return images / spent, waited / spent


def _advice(parts: Parts, wait: float, workers: int, config: ResolvedConfig) -> Iterator[str]:
    """What bounds the run, and what would change it."""
    step, train, on_gpu = sum(parts[p] for p in PARTS), config.train, device.on_gpu()
    shares = {part: parts[part] / step for part in PARTS}
    if wait > _WAITS:
        yield f"Images come too slowly: training waits for them {wait:.0%} of the time."
        yield f"- more reading processes, if there are idle cores: --set data.workers={workers + 2}"
        if parts["decode"] > parts["views"]:
            yield "- decoding takes most of it: ssl-vit pack DATA --to DIR --size N makes large photographs smaller"
        else:
            yield "- crops take most of it: fewer or smaller ones (settings of the method)"
    else:
        yield f"The training step bounds the run; images come in time (data wait {wait:.0%})."
        if on_gpu and not train.compile:
            yield "- --set train.compile=true makes a recent GPU quicker, after some minutes of compiling"
        if on_gpu and train.precision == "32-true":
            yield "- --set train.precision=bf16-mixed is quicker where the GPU supports it"
    if memory_is_short():
        yield f"- memory is nearly full; where it does not suffice, {less(config)}"
    if shares["augment"] > _MUCH and config.data.kernels == "torch" and not on_gpu:
        yield f"- colours take {shares['augment']:.0%} of a step: pip install 'ssl_vit[numba]' makes that a quarter"
    if shares["optimiser"] > _MUCH:
        yield f"- the optimiser takes {shares['optimiser']:.0%} of a step, whatever its size: a larger train.batch_size"
