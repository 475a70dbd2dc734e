"""How long a run is: the epochs that a time allows, and the time that it will take, from steps that were measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ssl_vit.checkpoints.inspection import Inspection
from ssl_vit.config import ResolvedConfig, RunConfig
from ssl_vit.data.loader import steps_per_epoch
from ssl_vit.data.sources import Source
from ssl_vit.errors import UserError
from ssl_vit.methods import method_class
from ssl_vit.methods.method import Method
from ssl_vit.run.folder import logged
from ssl_vit.run.plan import Decision, cadence
from ssl_vit.run.speed import SECONDS, Speed, clock, in_words, longest, measure
from ssl_vit.settings import AUTO
from ssl_vit.training.checkpoint import Checkpoints
from ssl_vit.training.compiler import compiling
from ssl_vit.training.memory import enough_memory

_NEAR = 0.025  # share of the time by which whole epochs may miss it
_SHORT = 40  # steps of a run of which measuring would be a good part


class Length(NamedTuple):
    """What was measured of a run before its first step."""

    settings: dict[str, Any]  # of section train, which follow from the time; none where no time was given
    decision: Decision | None  # likewise
    expected: str  # how long it will take, in words


def length_of(
    config: RunConfig,
    resolved: ResolvedConfig,
    sources: tuple[Source, Source | None],
    weights: Inspection | None,
    out: Path,
    begun: float,
) -> Length:
    """Measure a run's speed, and where ``train.time`` is given choose its epochs; begun: when the clock began to count.

    Raises UserError where the time is too short, and with a time also what steps of the run raise.
    """
    per_epoch = steps_per_epoch(len(sources[0]), resolved.train.batch_size)
    seconds = _seconds_of(config, per_epoch)
    if config.train.time is not None and config.train.epochs == AUTO:
        if config.train.strategy == "fsdp":
            raise UserError("train.time: one device alone is measured, which fsdp is not for; give --epochs instead")
        asked = 60 * config.train.time
        with logged(None), enough_memory(resolved), compiling():
            speed = measure(resolved, sources, weights, out, min(max(SECONDS, 0.02 * asked), 20.0, 0.1 * asked))
        return _fitted(resolved, asked, clock() - begun, speed, seconds(speed), per_epoch)
    steps = resolved.train.length(per_epoch)
    if steps < _SHORT:
        return Length({}, None, f"not measured: a run of {steps} steps would spend a good part of its time on it")
    try:
        with logged(None):
            speed = measure(resolved, sources, weights, out)
    except Exception as error:  # whatever it is, it is the run's to say, where the images that can't be read are listed
        why = (str(error).splitlines() or [type(error).__name__])[0]
        return Length({}, None, f"not measured, as no step was possible before the first one ({why})")
    return Length({}, None, _expected(resolved, speed, seconds(speed)(steps), steps))


def _seconds_of(config: RunConfig, per_epoch: int) -> Callable[[Speed], Callable[[int], float]]:
    """The seconds that so many steps take at a speed, with the user's own intervals or those that are chosen."""
    tree = config.model_dump()

    def at(speed: Speed) -> Callable[[int], float]:
        def seconds(steps: int) -> float:
            every = {}
            for key, (value, _) in cadence(math.ceil(steps / per_epoch), steps, per_epoch).items():
                section, name = key.split(".")
                every[key] = value if tree[section][name] == AUTO else tree[section][name]
            return speed.total(steps, per_epoch, every)

        return seconds

    return at


def _fitted(
    config: ResolvedConfig, asked: float, spent: float, speed: Speed, seconds: Callable[[int], float], per_epoch: int
) -> Length:
    """As many epochs as end nearest to the time; where none ends near it, as many steps as it allows."""
    most = longest(seconds, asked - spent)
    if not most:
        least = spent + seconds(1)
        raise UserError(
            f"train.time: {in_words(asked)} is too short: a single step, with what comes before and after it, takes "
            f"{in_words(least)} here; give at least --time {in_words(1.2 * least)}"
        )
    near = [each for each in (most // per_epoch, most // per_epoch + 1) if each]
    epochs = min(near, key=lambda each: abs(spent + seconds(each * per_epoch) - asked))
    steps = None
    if abs(spent + seconds(epochs * per_epoch) - asked) > _NEAR * asked:
        epochs, steps = math.ceil(most / per_epoch), most
    settings = {"epochs": epochs, "steps": steps, "step_seconds": float(f"{speed.step:.4g}")}
    settings["compile"] = config.train.compile  # as it was measured
    total = steps or epochs * per_epoch
    why = f"{in_words(asked)} at {speed.step:.3g} s a step, {per_epoch} steps an epoch"
    why += f"; it ends within the last epoch, after {steps} steps" if steps else ""
    decision = Decision("train.epochs", epochs, why, "--time TIME, or --epochs N without it")
    return Length(settings, decision, _expected(config, speed, spent + seconds(total), total))


def _expected(config: ResolvedConfig, speed: Speed, seconds: float, steps: int) -> str:
    """The time that a run will take, what it is made of, and how to halve it."""
    parts = [f"{steps} steps of {speed.step:.3g} s ({speed.steps} measured)", f"{speed.save:.2g} s a checkpoint"]
    if speed.score:
        parts.append(f"{speed.score:.2g} s a score")
    words = f"{in_words(seconds)}: {', '.join(parts)}; --time {in_words(seconds / 2)} would halve it"
    if config.train.devices * config.train.nodes > 1:
        words += "; measured on one device, without what they tell each other"
    if method_class(config.method.name).prepare is not Method.prepare:
        words += f"; what {config.method.name} prepares beforehand comes on top"
    return words


def of_resumed(config: ResolvedConfig, out: Path, per_epoch: int) -> str:
    """How long a resumed run will take, which isn't measured: from what it knows of its start."""
    newest = Checkpoints(out / "checkpoints", 1).newest()
    done = int(newest.stem.removeprefix("step-")) if newest else 0
    left = max(0, config.train.length(per_epoch) - done)
    if config.train.step_seconds is None:
        return f"{left} steps are left; not measured anew: the first steps will say how long they take"
    seconds = left * config.train.step_seconds
    return (
        f"{left} steps are left, {in_words(seconds)} at the {config.train.step_seconds:g} s of one at the run's start"
    )
