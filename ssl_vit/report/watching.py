"""The look that keeps a run's report fresh: pictures at known steps, the page where there is time for it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.config import ResolvedConfig
from ssl_vit.data.augment import normalise
from ssl_vit.data.sources import Source
from ssl_vit.eval.features import evaluating
from ssl_vit.methods.method import Method
from ssl_vit.progress import memory_gb
from ssl_vit.report import inside, kept, pixels
from ssl_vit.report.curves import Metrics
from ssl_vit.report.harmless import harmless
from ssl_vit.report.page import write_page
from ssl_vit.report.sample import (
    Sample,
    as_picture,
    keep_sample,
    keep_views,
    picture_times,
    read_sample,
    restored_colours,
    sample_size,
)
from ssl_vit.training.looks.look import Look
from ssl_vit.training.looks.metrics import Metrics as Board
from ssl_vit.training.step import Learner, Outcome

SHARE = 0.006  # of a run's time that pictures and pages may take while it runs
TENTHS = 10  # pictures are made so many times in a run, where that is cheap


def picture_steps(every: int, total: int, most: int) -> set[int]:
    """Steps after which pictures are made: ``most`` times, evenly and at the end; of a long run early ones, too.

    >>> sorted(picture_steps(4, 30, 3)), sorted(picture_steps(400, 10_000, 10))[:5]
    ([10, 20, 30], [400, 800, 1000, 1600, 2000])
    """
    part = -(-total // most)
    early = {every << power for power in range(64) if every << power < 2 * part} if most == TENTHS else set()
    return {step for step in early if step < total} | set(range(part, total, part)) | {total}


class Watching(Look):
    """Rank 0, which has metrics, makes pictures and pages; the others give it their part of the weights.

    What it makes at the start and at the end is a function of the run alone, but for speeds; what it makes meanwhile
    is a matter of time: at known steps, and no more than ``SHARE`` of the run.
    """

    def __init__(self, config: ResolvedConfig, source: Source, run: Path, board: Board | None) -> None:
        """board: the metrics that the first process writes, on which pictures are shown too."""
        self._config, self._source, self._every = config, source, config.health.every
        self._run, self._board = run if board is not None else None, board
        self._sample: Sample | None = None
        self._told: set[str] = set()
        self._metrics: Metrics | None = None
        self._colours = (config.data.mean, config.data.std)

    def begin(self, learner: Learner, start: int) -> None:
        """Read the sample; before the first step of all, see what a network makes of it that has learnt nothing."""
        self._learner, self._begun, self._spent = learner, time.monotonic(), 0.0
        seen = learner.total * self._config.train.batch_size
        self._count = sample_size(seen, len(self._source), self._config.backbone.image_size)
        self._steps = picture_steps(self._every, learner.total, picture_times(seen, self._count))
        self._speed = _Speed(self._run, start, self._config.train.batch_size)
        whole = learner.whole()
        if self._run is None:
            return
        self._metrics = Metrics(self._run / "metrics.jsonl")
        with self._spending():
            self._begin(self._run, whole, new=start == 0)

    def _begin(self, run: Path, method: Method, new: bool) -> None:
        with harmless("its sample of images", self._told):
            self._sample = self._read()
            before = kept.get(run, kept.SAMPLE)
            if new or not isinstance(before, dict) or before.get("index") != self._sample.index:
                (run / kept.FOLDER / f"{kept.START}.json").unlink(missing_ok=True)  # of other images, or none
                keep_sample(run, self._sample, self._source.classes)
        if self._sample is not None and new:
            with harmless("the picture of views", self._told):
                plan, seed = method.views(), self._config.train.seed
                keep_views(run, self._source, plan, self._sample, seed, self._colours)
            self._look(method, kept.START, 0)
            self._page()

    def before_step(self, step: int) -> None:
        """The batch is there."""
        self._speed.waited()

    def after_step(self, outcome: Outcome) -> None:
        """Make what is due."""
        self._speed.worked()
        done, total = outcome.progress.step + 1, self._learner.total
        whole = self._learner.whole() if done in self._steps else None  # on all ranks together
        if self._run is not None:
            with self._spending():
                if whole is not None and (done == total or self._affords()):
                    self._look(whole, kept.NOW, done)
                if done % self._every == 0 or done == total:
                    with harmless("its speed", self._told):
                        self._speed.write(done)
                    if done < total and self._affords():  # the last page comes when the run is finished
                        self._page()
        self._speed.ready()

    def end(self) -> None:
        """Leave a page of a run that was stopped; a whole one gets its last when it is finished."""
        begun = self._metrics is not None  # in rank 0 alone; not where a look before it failed at the start
        if begun and self._speed.steps and not self._speed.done >= self._learner.total:
            self._page()

    def _affords(self) -> bool:
        """Whether there is time for more."""
        return self._spent < SHARE * (time.monotonic() - self._begun)

    @contextmanager
    def _spending(self) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self._spent += time.monotonic() - begun

    def _read(self) -> Sample:
        sample = read_sample(self._source, self._config.backbone.image_size, self._count)
        if len(sample.index) < 2:
            raise ValueError("fewer than two of the images can be read")
        return sample

    def _look(self, method: Method, when: str, step: int) -> None:
        """Keep what the network that would be exported makes of the sample."""
        if self._sample is None or self._run is None:
            return
        with harmless("the pictures of what was learnt", self._told):
            seen = self._seen(method.exported(), when)
            for name, cells in seen.cells.items():
                shown = pixels.strip([pixels.cells(each, kept.PHOTO) for each in cells])
                pixels.write(shown, self._run / kept.FOLDER / f"{when}-{name}.png")
                self._show(name, shown, step)
            drawn = self._drawn(method) if when == kept.NOW else {}
            for name, picture in drawn.items():
                pixels.write(picture, self._run / kept.FOLDER / f"{when}-drawn-{name}.jpg")
                self._show(f"drawn-{name}", picture, step)
            numbers = seen.numbers | {"step": step, "cells": list(seen.cells), "drawn": list(drawn)}
            kept.put(self._run, f"{when}.json", numbers)

    def _show(self, name: str, picture: pixels.Picture, step: int) -> None:
        if self._board is not None:
            self._board.show(f"report/{name}", picture, step)

    def _seen(self, backbone: Backbone, when: str) -> inside.Seen:
        assert self._sample is not None
        assert self._run is not None
        before = kept.get(self._run, f"{kept.START}.json") if when == kept.NOW else None
        turn = np.asarray(before["map"], float) if before else None
        return inside.look(backbone, self._sample, self._colours, self._learner.fabric.autocast, turn)

    @torch.no_grad()
    def _drawn(self, method: Method) -> Mapping[str, pixels.Picture]:
        """What the method itself draws of a few images, a strip each."""
        assert self._sample is not None
        device = self._learner.fabric.device
        images = normalise(self._sample.images[self._sample.shown].to(device), *self._colours)
        with evaluating(method), self._learner.fabric.autocast():
            return {name: self._strip(made) for name, made in method.drawn(images).items()}

    def _strip(self, made: Tensor) -> pixels.Picture:
        restored = restored_colours(made, *self._colours)
        return pixels.strip([pixels.shrunk(as_picture(image), kept.PHOTO) for image in restored])

    def _page(self) -> None:
        assert self._run is not None
        with harmless(kept.PAGE, self._told):
            write_page(self._run, self._metrics)


class _Speed:
    """Seconds of steps and of waiting for batches, and a line in RUN/report/speed.jsonl for each check."""

    def __init__(self, run: Path | None, start: int, batch: int) -> None:
        self._path = None if run is None else run / kept.FOLDER / kept.SPEED
        self._batch, self.done, self.steps = batch, start, 0
        self._wait = self._busy = 0.0
        self._count = 0  # of steps since the last line
        self._mark = time.monotonic()

    def waited(self) -> None:
        """A batch has come."""
        self._wait += self._lap()

    def worked(self) -> None:
        """A step is done."""
        self._busy += self._lap()
        self._count += 1
        self.steps += 1
        self.done += 1

    def ready(self) -> None:
        """What was done between is not counted."""
        self._mark = time.monotonic()

    def write(self, step: int) -> None:
        """Add a line."""
        seconds = self._wait + self._busy
        if self._path is None or not seconds:
            return
        row = {"step": step, "images_per_second": self._batch * self._count / seconds, "wait": self._wait / seconds}
        self._path.parent.mkdir(exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | {"gb": memory_gb()}) + "\n")
        self._wait, self._busy, self._count = 0.0, 0.0, 0

    def _lap(self) -> float:
        now = time.monotonic()
        lap, self._mark = now - self._mark, now
        return lap
