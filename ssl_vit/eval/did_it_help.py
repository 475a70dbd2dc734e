"""Whether a run has made features better: one sentence and a small table, by the same images before and after it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ssl_vit.eval.compare import mcnemar, paired_difference
from ssl_vit.eval.intervals import wilson
from ssl_vit.eval.yardstick import Score

SURE = 0.05  # p below which a difference is taken for more than chance
CLEAR = 0.05  # by which share scores without labels must differ on average to count

Verdict = Literal["helped", "hurt", "no difference", "unchanged", "not known"]


@dataclass(frozen=True)
class Row:
    """One network's scores."""

    name: str
    values: dict[str, float]
    low: float | None = None  # of the first value, 95 % interval (Wilson); None without labels
    high: float | None = None


@dataclass(frozen=True)
class Helped:
    """The answer, and the numbers that it stands on; differences are in percent of the images."""

    verdict: Verdict
    sentence: str
    what: str  # was measured, and on which images
    rows: tuple[Row, ...]
    difference: float | None = None  # of the first value, export less start
    low: float | None = None  # its 95 % interval
    high: float | None = None
    p: float | None = None  # that chance splits the images so between start and export (McNemar, or the sign test)
    exported: str = "end"  # the row whose weights are exported
    step: int | None = None  # after which those were

    def __str__(self) -> str:
        return f"{self.sentence}\n{self.table()}"

    def table(self) -> str:
        """A header, a line for each network, and one that says what was measured."""
        names = list(self.rows[0].values)
        width = max(len(row.name) for row in self.rows)
        interval = self.rows[0].low is not None
        head = f"  {'':{width}}" + "".join(f"  {name:>10}" for name in names) + "   95 % interval" * interval
        lines = [head.rstrip()]
        for row in self.rows:
            line = f"  {row.name:{width}}" + "".join(f"  {row.values[name]:10.1f}" for name in names)
            lines.append(line + (f"   {row.low:.1f} to {row.high:.1f}" if row.low is not None else ""))
        return "\n".join([*lines, f"  {self.what}"])

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no numbers that are not finite."""
        found: dict[str, Any] = _finite(asdict(self))
        return found

    @classmethod
    def of_dict(cls, found: Mapping[str, Any]) -> Helped:
        """As it was."""
        rows = tuple(Row(**row | {"values": _numbers(row["values"])}) for row in found["rows"])
        return cls(**{**found, "rows": rows})


def _finite(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: _finite(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [_finite(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in values.items()}


def row_of(name: str, score: Score) -> Row:
    """A network's line; where its score is a share of right answers, with an interval."""
    if not is_labelled(score):
        return Row(name, score.values)
    low, high = wilson(int(score.each.sum()), len(score.each))
    return Row(name, score.values, low, high)


def is_labelled(score: Score) -> bool:
    """Whether it is k-NN's."""
    return len(score.values) == 1


def standing(score: Score, start: Score) -> float:
    """By how much a score is above that of the start: points of k-NN, or without labels percent, on average."""
    now, then = list(score.values.values()), list(start.values.values())
    if not all(map(math.isfinite, now)):
        return -math.inf
    if is_labelled(score):
        return now[0] - then[0]
    ratios = [math.log(max(a, 1e-3) / max(b, 1e-3)) for a, b in zip(now, then, strict=True)]
    return 100 * math.expm1(sum(ratios) / len(ratios))


def compare_with_start(score: Score, start: Score) -> tuple[Verdict, float, float, float, float]:
    """What is to be said of it, the difference and its interval in percent of the images, and p."""
    difference, low, high = paired_difference(start.each, score.each)
    p = mcnemar(start.each > score.each, score.each > start.each)
    above = standing(score, start)
    clear = p < SURE and above != 0 if is_labelled(score) else abs(above) > 100 * CLEAR
    verdict: Verdict = "no difference" if not clear else "helped" if above > 0 else "hurt"
    return verdict, difference, low, high, p


@dataclass(frozen=True)
class Measured:
    """What a run knows about itself at its end."""

    what: str
    start: Score
    last: Score
    last_step: int
    best: Score | None = None  # of which the weights were kept; None where none were
    best_step: int = 0
    looks: int = 0  # of which it is the best
    at_random: Score | None = None  # of the same network; None where that is what it began with
    pixels: Score | None = None
    frozen: str = ""  # the method, where its backbone does not learn


def did_it_help(found: Measured) -> Helped:
    """The answer, judged by what is exported, or where that is what the run began with, by what it has learnt."""
    kept = found.best is not None and found.best_step != found.last_step
    judged, step = (found.best, found.best_step) if kept and found.best_step else (found.last, found.last_step)
    assert judged is not None  # as one is kept
    verdict, difference, low, high, p = compare_with_start(judged, found.start)
    if found.frozen:
        verdict = "unchanged"
    judgement = _judgement(verdict, judged, found, (difference, low, high, p))
    said = [judgement, *_kept(found, kept), *_beside(judged, found)]
    exported = "end" if not kept else "best" if found.best_step else "start"
    return Helped(
        verdict,
        " ".join(said),
        found.what,
        tuple(_rows(found, kept)),
        difference,
        low,
        high,
        p,
        exported=exported,
        step=found.best_step if kept else step,
    )


def not_known(what: str, last: Score) -> Helped:
    """Of a run that began before its start was measured."""
    why = "Not known whether it helped: this run began before its start was measured."
    return Helped("not known", why, what, (row_of("end", last),))


def _rows(found: Measured, kept: bool) -> list[Row]:
    rows = [row_of("start" if found.at_random is not None else "start (random weights)", found.start)]
    if kept and found.best is not None and found.best_step:
        rows.append(row_of(f"best, step {found.best_step}", found.best))
    rows.append(row_of(f"end, step {found.last_step}", found.last))
    if found.at_random is not None:
        rows.append(row_of("random weights", found.at_random))
    if found.pixels is not None:
        rows.append(row_of("raw pixels", found.pixels))
    return rows


def _judgement(verdict: Verdict, judged: Score, found: Measured, numbers: Sequence[float]) -> str:
    words = {
        "helped": "It helped",
        "hurt": "It hurt",
        "no difference": "It made no difference that is more than chance",
        "unchanged": f"The backbone is as it was, as {found.frozen} leaves it alone",
        "not known": "",
    }[verdict]
    now, then = judged.values, found.start.values
    if not is_labelled(judged):
        changes = ", ".join(f"{name} {then[name]:.1f} to {now[name]:.1f}" for name in now)
        return f"{words}, as far as scores without labels tell: {changes}."
    if verdict == "unchanged":
        return f"{words}: k-NN is {now['k-NN']:.1f} %."
    difference, low, high, p = numbers
    went = "rose" if now["k-NN"] > then["k-NN"] else "fell" if now["k-NN"] < then["k-NN"] else "went"
    return (
        f"{words}: k-NN {went} from {then['k-NN']:.1f} to {now['k-NN']:.1f} % ({difference:+.1f}, 95 % interval "
        f"{low:+.1f} to {high:+.1f}, p = {p:.2g})."
    )


def _kept(found: Measured, kept: bool) -> list[str]:
    """Which weights are exported, where that is a choice."""
    if found.best is None or found.frozen:
        return []
    if not kept:
        return [f"export/ holds the last weights, the best of {found.looks} looks."]
    worse = ", worse than the start" * (compare_with_start(found.last, found.start)[0] == "hurt")
    last = f"export-last/ holds those of the last step, {found.last_step}{worse}."
    if not found.best_step:
        return [f"export/ holds the weights that it began with, as none of {found.looks} looks was above them; {last}"]
    return [f"export/ holds the weights of step {found.best_step}, the best of {found.looks} looks; {last}"]


def _beside(judged: Score, found: Measured) -> list[str]:
    """What the features have to be held against."""
    if found.pixels is None or not is_labelled(judged) or found.pixels.values["k-NN"] < judged.values["k-NN"]:
        return []
    return [f"Raw pixels alone get {found.pixels.values['k-NN']:.1f} %: on these images they tell as much."]
