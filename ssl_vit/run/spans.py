"""Whether a run is long enough for its schedules: a recipe made for 100 epochs says nothing good of three."""

from __future__ import annotations

from collections.abc import Iterator

from ssl_vit.config import RunConfig
from ssl_vit.errors import UserError
from ssl_vit.schedules import linear

LARGE = 0.5  # of the run: what lasts longer than that is worth a word
KEPT = 0.1  # of the network it began as: a teacher with more of it has hardly moved


def check_spans(config: RunConfig, steps: int) -> None:
    """UserError where the settings, all resolved, name a phase that outlasts a run of so many steps."""
    epochs, problems = config.train.epochs, list[str]()
    warmup, per_epoch = config.optim.warmup_epochs, steps / epochs
    if warmup > epochs:
        share = linear(0.0, 1.0, steps - 1, round(warmup * per_epoch))
        problems.append(
            f"optim.warmup_epochs: {warmup:g} epochs of warm-up in a run of {epochs}: the learning rate would get to "
            f"{share:.2g} of optim.lr; {_shorter('optim.warmup_epochs', epochs)}"
        )
    cooldown = config.optim.cooldown_epochs
    if warmup <= epochs < warmup + cooldown:
        problems.append(
            f"optim.schedule: {config.optim.schedule} takes {warmup:g} epochs of warm-up and {cooldown:g} of cool-down "
            f"in a run of {epochs}; {_shorter('optim.cooldown_epochs', epochs)}"
        )
    for key, span in config.method.spans().items():
        if span > epochs or (span == epochs and key.startswith("method.freeze")):
            problems.append(f"{key}: {span:g} epochs in a run of {epochs}, which ends before; {_shorter(key, epochs)}")
    held, length = config.optim.heads_first, min(steps, config.train.steps or steps)
    if held >= length:
        problems.append(
            f"optim.heads_first: {held} steps in a run of {length}, whose backbone would never learn; set at most "
            f"{length // 10}, or train longer"
        )
    if problems:
        raise UserError("\n".join(problems))


def remarks_on_spans(config: RunConfig, steps: int) -> Iterator[str]:
    """A sentence for each phase that takes more than half of the run, and for a teacher that will hardly move."""
    epochs = config.train.epochs
    spans = {"optim.warmup_epochs": config.optim.warmup_epochs} | config.method.spans()
    for key, span in spans.items():
        if span > LARGE * epochs:
            yield f"{key}: {span:g} of {epochs} epochs, {span / epochs:.0%} of the run; {_shorter(key, epochs)}"
    momentum = config.method.teacher_momentum()
    learns = config.backbone.weights is None  # where it begins with trained weights, its teacher is to stay near them
    if learns and steps and momentum is not None and (kept := kept_share(momentum, steps)) > KEPT:
        yield (
            f"method.momentum: at {momentum:g} a run of {steps} steps leaves {kept:.0%} of the teacher as it began; "
            f"set at most {max(0.0, 1 - 6 / steps):.4g}, or train longer"
        )


def kept_share(momentum: float, steps: int) -> float:
    """What is left of the first teacher after so many steps of a momentum that a cosine takes to 1.

    >>> round(kept_share(0.996, 100), 2), round(kept_share(0.996, 10_000), 2)
    (0.82, 0.0)
    """
    return float((1 - (1 - momentum) / 2) ** steps)  # its mean over the cosine


def _shorter(key: str, epochs: int) -> str:
    """A tenth of the run is what recipes have."""
    return f"set {key}={epochs / 10:g}, or train longer (train.epochs)"
