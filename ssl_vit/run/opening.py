"""What a run says at its start: which images it sees and how, in one table, so that nothing is left out unsaid."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ssl_vit import device
from ssl_vit.config import ResolvedConfig
from ssl_vit.data.bad import printable
from ssl_vit.data.left_out import left_out
from ssl_vit.data.loader import steps_per_epoch
from ssl_vit.data.sources import Source
from ssl_vit.run.plan import Decision
from ssl_vit.run.spans import remarks_on_spans

log = logging.getLogger("ssl_vit")

_SHOWN = 5  # names in a line

Row = tuple[str, str]  # what it is about, and what is so


def say_opening(
    config: ResolvedConfig,
    decisions: Sequence[Decision],
    source: Source,
    val: Source | None,
    scanned: dict[str, Any],
    expected: str | None = None,
) -> list[Row]:
    """Log the table of a new run, and return it.

    scanned: what ``data.scan`` found out about the images; expected: its time.
    """
    rows = [
        *image_rows(source),
        *_unreadable(scanned),
        ("channels", _channels(scanned, config, decisions)),
        ("values", _values(config, decisions)),
        ("mean, deviation", _colours(config, decisions)),
        ("classes", _classes(source)),
        *scored_rows(val),
        ("device", _device(config)),
        ("recipe", _recipe(config)),
        *(("schedule", remark) for remark in remarks_on_spans(config, _steps(config, source))),
        *([("expected", expected)] if expected is not None else []),
    ]
    log.info("this run:\n%s", opening_table(rows))
    return rows


def _device(config: ResolvedConfig) -> str:
    train = config.train
    count = train.devices * train.nodes
    words = f"{count} × {device.name()}" if count > 1 else device.name()
    return f"{words} ({device.UNTRIED})" if device.apples() and not device.on_gpu() else words


def image_rows(source: Source) -> list[Row]:
    """What is used and what is not: of any source, also where a run is resumed."""
    types = ", ".join(f"{count} {printable(kind)}" for kind, count in source.types.items())
    return [
        ("images", f"{len(source)} of {printable(source.root)} ({types})"),
        ("left out", left_out(source) or "nothing"),
    ]


def scored_rows(val: Source | None) -> list[Row]:
    """What the features are scored on while they are learnt, where there is something."""
    return [] if val is None else [("scored on", _scored_on(val))]


def opening_table(rows: Sequence[Row]) -> str:
    """Write the rows as aligned lines."""
    width = max(len(subject) for subject, _ in rows)
    return "\n".join(f"  {subject:{width}}  {text}" for subject, text in rows)


def _unreadable(scanned: dict[str, Any]) -> list[Row]:
    """Which of the images looked at can't be read, if any."""
    found = scanned["unreadable"]
    if not found:
        return []
    names = "; ".join(found[:_SHOWN]) + "; …" * (len(found) > _SHOWN)
    return [("unreadable", f"{len(found)} of {scanned['sampled']} images looked at: {names}; others take their place")]


def _channels(scanned: dict[str, Any], config: ResolvedConfig, decisions: Sequence[Decision]) -> str:
    modes = scanned["modes"]
    if not modes:
        return f"not known: none of {scanned['sampled']} images looked at could be read"
    found = ", ".join(f"{count} {mode}" for mode, count in modes.items())
    found += f" ({scanned['sampled']} images looked at)"
    if scanned["stacks"]:
        found += f", {scanned['stacks']} of several pages, of which only the first is used"
    if (bands := config.data.bands) is None:
        return f"{found}; used as red, green and blue, opacity on white"
    numbers = ", ".join(map(str, bands))
    used = f"bands {numbers}, counted from 0, are red, green and blue" if len(bands) > 1 else f"band {numbers} is grey"
    return f"{found}; {used}: {_why(decisions, 'data.bands')}"


def _values(config: ResolvedConfig, decisions: Sequence[Decision]) -> str:
    limits = config.data.range
    if limits is None:
        return "0 to 255, as they are"
    if limits == "each":
        return "to 0 to 255, each image by its own type and extremes (16 bits: / 257)"
    low, high = (f"{limit:g}" for limit in limits)
    why = _why(decisions, "data.range")
    return f"{low} to {high} become 0 to 255, in every image of more than 8 bits: {why}"


def _why(decisions: Sequence[Decision], key: str) -> str:
    return next((decision.why for decision in decisions if decision.key == key), "as set")


def _colours(config: ResolvedConfig, decisions: Sequence[Decision]) -> str:
    reasons = {_why(decisions, key) for key in ("data.mean", "data.std")}
    mean, std = (" ".join(f"{value:g}" for value in each) for each in (config.data.mean, config.data.std))
    return f"{mean}, {std}: {'; '.join(sorted(reasons))}"


def _classes(source: Source) -> str:
    if not source.classes:
        return "none"
    return f"{len(source.classes)} ({_some(source.classes)}); not learnt from"


def _some(names: Sequence[str]) -> str:
    return ", ".join(printable(name) for name in names[:_SHOWN]) + ", …" * (len(names) > _SHOWN)


def _scored_on(val: Source) -> str:
    found = f"{len(val)} images of {printable(val.root)} in {len(val.classes)} classes"
    return f"{found}; left out: {left_out(val)}" if left_out(val) else found


def _recipe(config: ResolvedConfig) -> str:
    part, batch = config.backbone, config.train.batch_size
    size = part.image_size if config.train.sizes is None else f"{config.train.sizes} (size:share of the steps)"
    return f"{config.method.name} on {part.name} at {size} pixels, a batch of {batch}"


def _steps(config: ResolvedConfig, source: Source) -> int:
    return config.train.length(steps_per_epoch(len(source), config.train.batch_size))
