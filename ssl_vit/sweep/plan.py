"""What a sweep is to try: SWEEP.yaml, read and checked before anything runs. Needs no torch."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ssl_vit.config import load_config
from ssl_vit.config.document import dump_tree, read_file
from ssl_vit.errors import ConfigError, UserError
from ssl_vit.settings import AUTO, Auto, Count, Section
from ssl_vit.wording import KeyPath, mistake_lines

SEED = "train.seed"  # cells that differ by it alone are one line of the result
MOST_CELLS = 10_000
_SEARCHED = 20  # cells of a search, where nothing else is said
_BOUNDS = ("low", "high", "log")
_EXAMPLE = "a list of values, or {low: 1e-4, high: 1e-2, log: true}"


class SweepOptions(Section):
    """How the cells are chosen, compared and stopped."""

    cells: Auto[Count] = AUTO
    """How many cells are run: of a grid all, of a search 20."""
    sampler: Auto[Literal["grid", "random", "tpe"]] = AUTO
    """How they are chosen: all of them where each setting has a list; else by TPE (tree-structured Parzen estimator,
    NIPS 2011), which tries more of what did well."""
    score: Auto[Literal["knn", "rank"]] = AUTO
    """What they are compared by, higher is better: k-NN top-1 where data.val is given, else the effective rank of the
    features (RankMe, arXiv 2210.02885)."""
    stop_early: bool = True
    """Whether a cell ends whose score is below the median of the others' at the same share of the run; each runs a
    fifth, and so do the first four to their end."""
    seed: int = 0
    """Seed of what is drawn at random."""
    fit: Literal["images", "parameters", "compute"] | None = None
    """What a power law with saturation is fitted over, of the error 100 - k-NN (arXiv 2106.04560): the images that were
    seen, the parameters, or the multiply-adds of it all."""


@dataclass(frozen=True)
class Range:
    """A range of numbers to search: whole numbers between whole bounds."""

    low: float
    high: float
    log: bool

    @property
    def whole(self) -> bool:
        """Whether it has whole numbers alone."""
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclass(frozen=True)
class SweepPlan:
    """A sweep's options, the settings that all cells share, and those that they differ by; all values as YAML text."""

    options: SweepOptions
    shared: Mapping[str, str]
    lists: Mapping[str, tuple[str, ...]]
    ranges: Mapping[str, Range]

    @property
    def sampler(self) -> str:
        """The sampler that was asked for, or chosen."""
        asked = self.options.sampler
        return str(asked) if asked != AUTO else "tpe" if self.ranges else "grid"

    @property
    def score(self) -> str:
        """What cells are compared by."""
        asked = self.options.score
        return str(asked) if asked != AUTO else "knn" if self.shared.get("data.val", "null") != "null" else "rank"

    @property
    def cells(self) -> int:
        """How many cells there are to be."""
        if self.options.cells != AUTO:
            return int(self.options.cells)
        return math.prod(map(len, self.lists.values())) if self.sampler == "grid" else _SEARCHED

    def grid(self) -> list[dict[str, str]]:
        """Every combination of the lists, seeds last to change, so that an early look has every setting once."""
        keys = sorted(self.lists, key=lambda key: key != SEED)
        return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(self.lists[k] for k in keys))]

    def settings(self, params: Mapping[str, Any]) -> list[str]:
        """A cell's settings, each as ``--set`` takes it."""
        own = {key: value if key in self.lists else _text(value) for key, value in params.items()}
        return [f"{key}={value}" for key, value in {**self.shared, **own}.items()]

    def told(self) -> str:
        """What will be run, in words: each cell of a grid, or the ranges of a search."""
        head = f"{self.cells} cells ({self.sampler}), compared by {self.score}"
        if self.sampler == "grid":
            cells = [", ".join(f"{key}={value}" for key, value in cell.items()) for cell in self.grid()]
            return "\n".join([head, *cells[: self.cells]])
        ranges = [f"{k}: {r.low:g} to {r.high:g}{', log' if r.log else ''}" for k, r in self.ranges.items()]
        return "\n".join([head, *ranges, *(f"{key}: {', '.join(values)}" for key, values in self.lists.items())])

    def text(self) -> str:
        """The plan in one line, the same for the same plan; how many cells and how they are scored may change."""
        ranges = {key: [r.low, r.high, r.log] for key, r in self.ranges.items()}
        return json.dumps([dict(self.shared), {k: list(v) for k, v in self.lists.items()}, ranges], sort_keys=True)


def read_plan(file: Path, data: list[str] | None = None) -> SweepPlan:
    """Read a SWEEP.yaml; data: the images, where the file doesn't name them (``set: {data.path: …}``).

    Raises:
        ConfigError: every mistake, one a line, with the setting and the file; those of each cell's configuration too.
    """
    options, shared, over = _sorted(file)
    if data is not None:
        shared["data.path"] = data[0] if len(data) == 1 else data
    lists = {key: value for key, value in over.items() if isinstance(value, list)}
    ranges = {key: value for key, value in over.items() if not isinstance(value, list)}
    problems = [f"{file}: over.{key}: an empty list; expected {_EXAMPLE}" for key, v in lists.items() if not v]
    problems += [problem for key, value in ranges.items() if (problem := _range_problem(file, key, value))]
    problems += [f"{file}: {key} is in set and in over; leave it in one" for key in over if key in shared]
    if not over:
        problems.append(f"{file}: nothing to try; expected over: with {_EXAMPLE} for some settings")
    if problems:
        raise ConfigError(problems)
    plan = SweepPlan(
        _options(file, options),
        {key: _text(value) for key, value in shared.items()},
        {key: tuple(map(_text, values)) for key, values in lists.items()},
        {key: Range(v["low"], v["high"], bool(v.get("log"))) for key, v in ranges.items()},
    )
    _check(file, plan)
    return plan


def _sorted(file: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The options, the shared settings and what is tried, of a file."""
    options, shared, over = dict[str, Any](), dict[str, Any](), dict[str, Any]()
    for (head, *rest), value, line in read_file(file):
        key = ".".join(rest)
        if head not in ("set", "over"):
            options[".".join((head, *rest))] = value
        elif not key:
            if value not in ({}, None):
                raise ConfigError([f"{file} line {line}: {head}: expected settings, as train.epochs: 10"])
        elif head == "set":
            shared[key] = value
        elif isinstance(value, list):
            over[key] = value
        elif rest[-1] in _BOUNDS and len(rest) > 1:
            over.setdefault(".".join(rest[:-1]), {})[rest[-1]] = value
        else:
            raise ConfigError([f"{file} line {line}: over.{key}: one value; expected {_EXAMPLE}, or put it into set"])
    return options, shared, over


def _options(file: Path, given: Mapping[str, Any]) -> SweepOptions:
    try:
        return SweepOptions.model_validate(given)
    except ValidationError as error:
        keys: dict[KeyPath, FieldInfo] = {(name,): field for name, field in SweepOptions.model_fields.items()}
        keys |= {("set",): SweepOptions.model_fields["seed"], ("over",): SweepOptions.model_fields["seed"]}
        lines = mistake_lines(error, keys, given, {(key,): str(file) for key in given})
        raise ConfigError(lines) from error


def _range_problem(file: Path, key: str, given: Mapping[str, Any]) -> str | None:
    low, high = given.get("low"), given.get("high")
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in (low, high))
    if not numbers or not isinstance(given.get("log", False), bool):
        return f"{file}: over.{key}: expected {_EXAMPLE}"
    assert low is not None
    assert high is not None
    if low >= high or (given.get("log") and low <= 0):
        return f"{file}: over.{key}: low {low}, high {high}; expected low below high, and above 0 with log: true"
    return None


def _check(file: Path, plan: SweepPlan) -> None:
    """Raise ConfigError for a cell whose configuration would be refused: each value once, then the grid's cells."""
    if plan.sampler == "grid" and plan.ranges:
        raise ConfigError([f"{file}: sampler: grid needs a list for {', '.join(plan.ranges)}; or choose random or tpe"])
    if plan.cells > MOST_CELLS:
        raise ConfigError([f"{file}: {plan.cells:,} cells, more than {MOST_CELLS:,}; shorten the lists, or search"])
    if plan.options.fit is not None and plan.score != "knn":
        raise ConfigError([f"{file}: fit: is of k-NN's error, and there are no labels; set data.val"])
    problems = dict[str, None]()
    for params in _samples(plan):
        try:
            load_config(sets=plan.settings(params))
        except UserError as error:
            problems |= dict.fromkeys(f"{file}: {line}" for line in str(error).splitlines())
    if problems:
        raise ConfigError(list(problems))


def _samples(plan: SweepPlan) -> Iterable[dict[str, Any]]:
    """Cells in which each value and each bound occurs."""
    first = {key: values[0] for key, values in plan.lists.items()}
    lows = {key: each.low for key, each in plan.ranges.items()}
    yield {**first, **lows}
    for key, values in plan.lists.items():
        yield from ({**first, **lows, key: value} for value in values[1:])
    yield {**first, **{key: each.high for key, each in plan.ranges.items()}}


def _text(value: Any) -> str:
    """A value as YAML text in one line."""
    return dump_tree({"x": value}).removeprefix("x:").strip() if not isinstance(value, float) else repr(value)
