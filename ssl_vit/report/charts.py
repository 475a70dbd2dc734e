"""Charts as SVG that stands in a page: its colours are the page's, light or dark, and its points answer the mouse."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from ssl_vit.report.curves import Curve

HEIGHT = 250
_WIDTH, _NARROW = (560, 108), (400, 76)  # pixels of a chart, and of them those to the right of the plot
_LEFT, _TOP, _BOTTOM = 46, 14, 34  # pixels around the plot
_ENDS = 6  # lines whose last values can be told apart
COLOURS = 12  # that the page has, by number


@dataclass(frozen=True)
class Line:
    """A line of a chart: a curve with a name."""

    name: str
    curve: Curve
    colour: int = 0
    dots: bool = False


@dataclass(frozen=True)
class Level:
    """A level is a value that means something, drawn across."""

    name: str
    value: float


def line_chart(
    lines: Sequence[Line],
    label: str,
    *,
    per_step: float = 1,
    levels: Sequence[Level] = (),
    bottom: float | None = None,
    top: float | None = None,
    end: float = 0,
    x_label: str = "images seen",
    named: bool = True,
    narrow: bool = False,
) -> Markup:
    """Draw lines over steps times ``per_step``.

    label: what a screen reader says; bottom, top: ends that must show; end: steps that must show; named: whether lines
    have their names beside them, where there are several; narrow: for three in a row.
    """
    lines = [line for line in lines if len(line.curve.steps)]
    if not lines:
        return Markup("")
    x_end = max(end, *(float(line.curve.steps[-1]) for line in lines)) * per_step or 1.0
    low, high = _ends(lines, levels, bottom, top)
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    width, right = _NARROW if narrow else _WIDTH
    x = _Scale(0, x_end, _LEFT, width - right)
    y = _Scale(low, high, HEIGHT - _BOTTOM, _TOP)
    drawn = [_axes(x, y, _ticks(0, x_end, 5), ticks, x_label)]
    shown = [level for level in levels if low <= level.value <= high]
    ends = _spread([*(y(line.curve.last) for line in lines), *(y(level.value) for level in shown)])
    for line, place in zip(lines, ends, strict=False):
        said = f"{number(line.curve.last)}{f' {line.name}' if named and len(lines) > 1 else ''}"
        drawn.append(_line(line, x, y, per_step, place, said if len(lines) <= _ENDS else "", alone=len(lines) == 1))
    drawn += [_level(level, x, y, place) for level, place in zip(shown, ends[len(lines) :], strict=True)]
    return _svg(width, HEIGHT, label, "".join(drawn), "chart")


def _ends(
    lines: Sequence[Line], levels: Sequence[Level], bottom: float | None, top: float | None
) -> tuple[float, float]:
    """The least and the largest value that must show."""
    values = [float(v) for line in lines for v in (*line.curve.mean, *([] if line.dots else line.curve.low[5:]))]
    values += [float(v) for line in lines if not line.dots for v in line.curve.high[5:]]
    values = [v for v in values if math.isfinite(v)] or [0.0]
    low, high = min(values), max(values)
    near = [level.value for level in levels if low - (high - low) < level.value < high + (high - low)]
    low, high = min([low, *near]), max([high, *near])
    low, high = low if bottom is None else min(bottom, low), high if top is None else max(top, high)
    return (low, high) if high > low else (low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1))


@dataclass(frozen=True)
class _Scale:
    """Values become pixels."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.begin + share * (self.end - self.begin), 1)


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from below ``low`` to within ``high``."""
    raw = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(each * unit for each in (1, 2, 2.5, 5, 10) if each * unit >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Write a number shortly.

    >>> [number(v) for v in (0, 0.00012, 3.14159, 42.0, 1500, 25_000, 3_200_000)]
    ['0', '0.00012', '3.14', '42', '1,500', '25 k', '3.2 M']
    """
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g} M"
    if size >= 1e4:
        return f"{value / 1e3:.4g} k"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _axes(x: _Scale, y: _Scale, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str) -> str:
    drawn, labels = [], [number(tick) for tick in y_ticks]
    if len(set(labels)) < len(labels):  # they differ late
        labels = [f"{tick:.6g}" for tick in y_ticks]
    for tick, text in zip(y_ticks, labels, strict=True):
        at = y(tick)
        drawn.append(f'<line class="grid" x1="{_LEFT}" x2="{x.end}" y1="{at}" y2="{at}"/>')
        drawn.append(f'<text class="tick" x="{_LEFT - 8}" y="{at + 4}" text-anchor="end">{text}</text>')
    for tick in x_ticks:
        drawn.append(
            f'<text class="tick" x="{x(tick)}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{number(tick)}</text>'
        )
    drawn.append(f'<text class="tick" x="{x.end}" y="{HEIGHT - 3}" text-anchor="end">{escape(x_label)}</text>')
    return "".join(drawn)


def _level(level: Level, x: _Scale, y: _Scale, place: float) -> str:
    at = y(level.value)
    return (
        f'<line class="level" x1="{_LEFT}" x2="{x.end}" y1="{at}" y2="{at}"/>'
        f'<text class="level-name" x="{x.end + 7}" y="{round(place + 4, 1)}">{escape(level.name)}</text>'
    )


def _line(line: Line, x: _Scale, y: _Scale, per_step: float, end: float, last: str, alone: bool) -> str:
    """The line, what lies around it, its last value, and its points for the mouse."""
    curve, colour = line.curve, f"c{line.colour % COLOURS}"
    places = [x(float(step) * per_step) for step in curve.steps]
    path = _path(places, [y(float(v)) for v in curve.mean])
    drawn = ""
    if not line.dots and alone:
        around = [f"{px},{y(float(v))}" for px, v in zip(places, curve.high, strict=True)]
        around += [f"{px},{y(float(v))}" for px, v in zip(reversed(places), curve.low[::-1], strict=True)]
        drawn += f'<polygon class="band {colour}" points="{" ".join(around)}"/>'
    drawn += f'<path class="line {colour}" d="{path}"/>'
    if line.dots:
        drawn += "".join(
            f'<circle class="dot {colour}" cx="{px}" cy="{y(float(v))}" r="3"/>'
            for px, v in zip(places, curve.mean, strict=True)
        )
    points = [
        [px, y(float(v)), f"{number(float(step) * per_step)}: {number(float(v))}"]
        for px, step, v in zip(places, curve.steps, curve.mean, strict=True)
    ]
    drawn += f'<text class="end {colour}" x="{places[-1] + 7}" y="{round(end + 4, 1)}">{escape(last)}</text>'
    said = escape(json.dumps({"name": line.name, "colour": colour, "points": points}))
    return f'<g data-line="{said}">{drawn}</g>'


def _path(xs: Sequence[float], ys: Sequence[float]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in zip(xs, ys, strict=True))


def _spread(places: Sequence[float], apart: float = 13) -> list[float]:
    """Places that are at least so far apart, in their order, near where they were."""
    found = list(places)
    order = sorted(range(len(found)), key=lambda i: found[i])
    for before, after in pairwise(order):
        found[after] = max(found[after], found[before] + apart)
    for after, before in pairwise(reversed(order)):
        found[after] = min(found[after], HEIGHT - _BOTTOM)
        found[before] = min(found[before], found[after] - apart)
    return found


@dataclass(frozen=True)
class Interval:
    """A row of a chart of intervals."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    said: str = ""
    strong: bool = True


def interval_chart(rows: Sequence[Interval], label: str, *, unit: str = "", zero: bool = False) -> Markup:
    """Draw a row for each value with its interval; zero: a line at 0, from which they are differences."""
    left, right, high = 190, 130, 30
    width, height = 720, len(rows) * high + 34
    values = [v for row in rows for v in (row.value, row.low, row.high) if v is not None and math.isfinite(v)]
    low, top = min([*values, *([0.0] if zero else [])]), max([*values, *([0.0] if zero else [])])
    room = 0.06 * (top - low) or 1.0
    x = _Scale(low - room, top + room, left, width - right)
    drawn = []
    for tick in _ticks(low - room, top + room):
        if x.low <= tick <= x.high:
            drawn.append(f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="6" y2="{height - 26}"/>')
            drawn.append(
                f'<text class="tick" x="{x(tick)}" y="{height - 10}" text-anchor="middle">{number(tick)}</text>'
            )
    if zero:
        drawn.append(f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="6" y2="{height - 26}"/>')
    for place, row in enumerate(rows):
        at, colour = 6 + (place + 0.5) * high, "c0" if row.strong else "faint"
        name = row.name if len(row.name) <= 28 else "…" + row.name[-27:]
        drawn.append(f'<text class="name" x="{left - 10}" y="{at + 4}" text-anchor="end">{escape(name)}</text>')
        if row.low is not None and row.high is not None:
            drawn.append(f'<line class="line {colour}" x1="{x(row.low)}" x2="{x(row.high)}" y1="{at}" y2="{at}"/>')
        drawn.append(f'<circle class="dot {colour}" cx="{x(row.value)}" cy="{at}" r="4"/>')
        said = row.said or f"{row.value:.1f}{unit}"
        drawn.append(f'<text class="name" x="{width - right + 10}" y="{at + 4}">{escape(said)}</text>')
    return _svg(width, height, label, "".join(drawn), "intervals")


def scatter(
    places: Sequence[tuple[float, float]], groups: Sequence[int], said: Sequence[str], label: str, *, shown: str
) -> Markup:
    """Draw points; groups: the colour of each, -1 none; said: its words; shown: by which name the page knows tiles."""
    side, room = 440, 14
    xs, ys = [p[0] for p in places], [p[1] for p in places]
    centre = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    half = max(max(xs) - min(xs), max(ys) - min(ys)) / 2 or 1.0
    x = _Scale(centre[0] - half, centre[0] + half, room, side - room)
    y = _Scale(centre[1] - half, centre[1] + half, side - room, room)
    drawn = [f'<rect class="frame" x="0.5" y="0.5" width="{side - 1}" height="{side - 1}" rx="6"/>']
    for index, ((px, py), group, words) in enumerate(zip(places, groups, said, strict=True)):
        colour = f"c{group % COLOURS}" if group >= 0 else "c2"
        drawn.append(
            f'<circle class="dot {colour}" cx="{x(px)}" cy="{y(py)}" r="4.5" data-tile="{index}" '
            f'data-of="{escape(shown)}" data-said="{escape(words)}"/>'
        )
    return _svg(side, side, label, "".join(drawn), "scatter")


def _svg(width: int, height: int, label: str, inside: str, kind: str) -> Markup:
    return Markup(  # whatever comes from people was escaped where it was put in
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{inside}</svg>'
    )
