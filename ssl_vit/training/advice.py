"""What to change after a run that went wrong: only what the run's own settings leave to change, with their values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssl_vit.config import ResolvedConfig
from ssl_vit.methods.base_config import Change


def advice_for(config: ResolvedConfig) -> dict[str, str]:
    """A sentence by kind of verdict; settings can't change on --resume, so each is for a new run."""
    found = {}
    for kind, changes in {"diverged": divergence(config), **config.method.advice}.items():
        if isinstance(changes, str):  # a method's own words
            found[kind] = changes
        elif words := [word for change in changes if (word := _in_words(config, change))]:
            found[kind] = f"In a new run, {', '.join(words[:-1])}{' or ' * (len(words) > 1)}{words[-1]}."
    return found


def divergence(config: ResolvedConfig) -> tuple[Change, ...]:
    """What steadies a run of any method."""
    return (
        Change("lower", "optim.lr"),
        Change("raise", "optim.warmup_epochs"),
        Change("set", "train.precision", "32-true"),
    )


def gentler(config: ResolvedConfig) -> str:
    """What to change for a new run where this one makes trained weights worse."""
    changes = (
        Change("lower", "optim.backbone_rate"),
        Change("raise", "optim.heads_first"),
        Change("lower", "optim.layer_decay"),
        Change("raise", "method.momentum"),
        Change("set", "adapt.anchor_pooled_cosine", 1.0, when=("adapt.anchor_pooled_cosine", 0.0)),
        Change("lower", "train.epochs"),
    )
    words = [word for change in changes if (word := _in_words(config, change))]
    return f"In a new run, {', '.join(words[:-1])}{' or ' * (len(words) > 1)}{words[-1]}." if words else ""


def after_divergence(config: ResolvedConfig, checkpoint: Path | None) -> str:
    """The flags of a new run that goes on from the last good weights, more gently; the old one's settings are fixed."""
    rate = float(f"{config.optim.lr / 2:.2g}")
    flags = f"--set optim.lr={rate:g} (was {config.optim.lr:g})"
    if config.optim.min_lr > rate:
        flags += f" --set optim.min_lr={rate:g}"
    if config.train.precision != "32-true":
        flags += f" or --precision 32-true (was {config.train.precision})"
    if checkpoint is None:
        return f"start a new run, another --out, with {flags}"
    return f"start a new run, another --out, from the last good weights: --weights {checkpoint} {flags}"


def _in_words(config: ResolvedConfig, change: Change | str) -> str:
    """The change with the value that is there now; "" where it is no change, or not one that works."""
    if isinstance(change, str):
        return change
    now = setting(config, change.key)
    if now is None or (change.when is not None and setting(config, change.when[0]) != change.when[1]):
        return ""
    if change.how == "set":
        return "" if now == change.to else f"set {change.key}={change.to} (now {now})"
    least = 1 if isinstance(now, int) else 0
    return "" if change.how == "lower" and now <= least else f"{change.how} {change.key} (now {now:g})"


def setting(config: ResolvedConfig, key: str) -> Any:
    """A setting by its key; None where there is no such."""
    section, _, name = key.partition(".")
    return getattr(getattr(config, section, None), name, None)
