"""Several runs beside each other, and results of scores, in one page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ssl_vit.data.bad import printable
from ssl_vit.errors import UserError
from ssl_vit.eval.intervals import half_interval
from ssl_vit.report import kept
from ssl_vit.report.charts import COLOURS, Interval, Line, interval_chart, line_chart, number
from ssl_vit.report.curves import KNN, Series
from ssl_vit.report.page import put, rendered, story_of
from ssl_vit.report.parts import Part, Section, charts, table, words
from ssl_vit.report.results import found_in, is_result, parts_of
from ssl_vit.report.story import Story

_SEED = "train.seed"
_PLACES = ("data.path", "data.val", "backbone.weights")  # settings that name places: long, and seldom the point
_OF_WEIGHTS = {"hash", "encoder", "encoder_pools", "role", "weights_sha256", "versions", "image_size", "mean", "std"}


def write_several(paths: Sequence[Path], out: Path) -> Path:
    """Write one page of runs and of results, and return its path.

    Raises:
        UserError: a path is neither a run's folder nor a result of eval or compare.
    """
    stories = [story_of(path) for path in paths if path.is_dir()]
    results = [(path, _result(path)) for path in paths if not path.is_dir()]
    results += [(path, found) for story in stories for path, found in found_in(story.run)]
    put(out, page_of_several(stories, results))
    return out


def _result(path: Path) -> Mapping[str, Any]:
    found = kept.as_json(path)
    if not is_result(found):
        told = "no result: expected a .json that ssl-vit eval or compare wrote with --json, or the folder of a run"
        raise UserError(f"{printable(str(path))}: {told}")
    assert isinstance(found, dict)
    return found


def page_of_several(stories: Sequence[Story], results: Sequence[tuple[Path, Mapping[str, Any]]]) -> str:
    """The page: a table with intervals, means over seeds, curves, what differs in the settings, and the results."""
    names = _names(stories)
    sections = [*_sections(stories, names)] if stories else []
    parts = [part for path, found in results for part in parts_of(printable(str(path)), found)]
    if parts:
        sections.append(Section("scores", "Scores", "Scores", "", parts))
    title = ", ".join(names) if 0 < len(names) <= 3 else f"{len(names)} runs" if names else "Scores"
    footer = "Written by ssl-vit report from the folders of the runs alone."
    subtitle = f"{len(stories)} runs, {len(results)} results"
    return rendered("several.html.j2", title=title, subtitle=subtitle, sections=sections, footer=footer)


def _names(stories: Sequence[Story]) -> list[str]:
    """Short names that tell the runs apart."""
    paths = [story.run.absolute() for story in stories]
    for depth in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        found = [printable("/".join(path.parts[-depth:])) for path in paths]
        if len(set(found)) == len(paths):
            return found
    return [printable(str(story.run)) for story in stories]


def _sections(stories: Sequence[Story], names: Sequence[str]) -> list[Section]:
    found = [_runs(stories, names)]
    if (seeds := _over_seeds(stories)) is not None:
        found.append(seeds)
    found.append(_curves(stories, names))
    if len(stories) > 1:
        found.append(_differences(stories, names))
    return found


def _runs(stories: Sequence[Story], names: Sequence[str]) -> Section:
    rows = [_row(name, story) for name, story in zip(names, stories, strict=True)]
    head = (
        "run",
        "method",
        "backbone",
        "pixels",
        "seed",
        "images seen",
        "verdict",
        "rank",
        "own view",
        "k-NN top-1, %",
    )
    numbers = (3, 4, 5, 7, 8)
    colours = _colours(stories)
    parts: list[Part] = [table(rows, head, numbers=numbers, colours=colours)]
    scored = [(name, story.score) for name, story in zip(names, stories, strict=True)]
    drawn = [Interval(name, score.top1, score.low, score.high) for name, score in scored if score is not None]
    if drawn:
        title = f"k-NN top-1, % (k = {next(score.k for _, score in scored if score is not None)})"
        parts.append(charts([(title, "95 % intervals (Wilson)", interval_chart(drawn, title))]))
    if len({_way(story) for story in stories if story.score is not None}) > 1:
        told = (
            "These scores were not made in one way (other images, another k or another transform), so they may not be "
            "compared; ssl-vit compare scores them in one way."
        )
        parts.append(words(told, "Take care"))
    note = "Losses of different methods can't be compared; scores of one protocol can. Intervals: chance of the images."
    return Section("runs", "Runs", "The runs", note, parts)


def _row(name: str, story: Story) -> list[Any]:
    score, rank, own = story.score, story.check("rank"), story.check("own_view")
    knn = "" if score is None else f"{score.top1:.1f} ({score.low:.1f} to {score.high:.1f})"
    return [
        name,
        story.setting("method.name"),
        story.setting("backbone.name"),
        story.setting("backbone.image_size"),
        story.setting(_SEED),
        number(story.done * story.batch),
        story.verdict[0] + ("" if story.complete is not None else ", not complete"),
        None if rank is None else f"{rank:.1f}",
        None if own is None else f"{own:.0%}",
        knn,
    ]


def _way(story: Story) -> str:
    """How a run's k-NN score was made, but for the weights."""
    found = story.metrics.scores[-1].get("protocol") if story.metrics.scores else None
    return str({k: v for k, v in found.items() if k not in _OF_WEIGHTS}) if isinstance(found, dict) else ""


def _over_seeds(stories: Sequence[Story]) -> Section | None:
    """Means over runs that differ by their seed alone."""
    groups: dict[str, list[Story]] = {}
    for story in stories:
        groups.setdefault(_but_seed(story), []).append(story)
    several = [group for group in groups.values() if len(group) > 1]
    if not several:
        return None
    rows, drawn = [], []
    for group in several:
        name = f"{group[0].setting('method.name')} on {group[0].setting('backbone.name')}"
        scores = [story.score.top1 for story in group if story.score is not None]
        ranks = [rank for story in group if (rank := story.check("rank")) is not None]
        rows.append((name, len(group), _mean(scores), _mean(ranks)))
        if len(scores) > 1:
            mean, half = fmean(scores), half_interval(scores)
            drawn.append(Interval(name, mean, mean - half, mean + half))
    parts: list[Part] = [table(rows, ("setting", "seeds", "k-NN top-1, %", "rank"), numbers=(1,))]
    if drawn:
        parts.append(
            charts([("k-NN top-1, %", "mean over seeds, 95 % intervals", interval_chart(drawn, "over seeds"))])
        )
    note = "Of runs that differ by their seed alone: mean, with Student's 95 % interval over the seeds."
    return Section("seeds", "Seeds", "Over seeds", note, parts)


def _but_seed(story: Story) -> str:
    """A run's settings but for its seed."""
    return str(sorted((key, value) for key, value, _ in story.settings() if key != _SEED))


def _colours(stories: Sequence[Story]) -> list[int]:
    """A colour for each run, which those share that differ by their seed alone."""
    groups = list(dict.fromkeys(_but_seed(story) for story in stories))
    return [groups.index(_but_seed(story)) % COLOURS for story in stories]


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{fmean(values):.1f}" + (f" ± {half_interval(values):.1f}" if len(values) > 1 else "")


def _curves(stories: Sequence[Story], names: Sequence[str]) -> Section:
    wanted: list[tuple[str, str, Callable[[Story], Series | None], float, float | None]] = [
        ("k-NN top-1, %", "", lambda s: s.metrics.of_scores(KNN + s.best_k) if s.best_k else None, 1, None),
        ("Dimensions in use", "RankMe", lambda s: s.metrics.of_checks("rank"), 1, 0),
        ("Views that find their own, %", "", lambda s: s.metrics.of_checks("own_view"), 100, 0),
        ("Loss", "of one method alone", lambda s: s.metrics.steps.get("loss"), 1, None),
    ]
    colours, drawn = _colours(stories), []
    for title, small, of, up, bottom in wanted:
        lines = [
            Line(name, series.times(story.batch, up).curve(), colour, dots=title != "Loss")
            for name, story, colour in zip(names, stories, colours, strict=True)
            if (series := of(story)) is not None and len(series.steps)
        ]
        drawn.append((title, small, line_chart(lines, title, named=False, bottom=bottom)))
    legend = {"macro": "legend", "names": list(zip(names, colours, strict=True))}
    return Section("curves", "Curves", "Curves", "Over images seen.", [legend, charts(drawn)])


def _differences(stories: Sequence[Story], names: Sequence[str]) -> Section:
    """Settings that are not the same in all runs."""
    each = [{key: value for key, value, _ in story.settings()} for story in stories]
    keys = dict.fromkeys(key for settings in each for key in settings)
    rows = [
        (key, *(settings.get(key, "") for settings in each))
        for key in keys
        if key not in _PLACES and len({settings.get(key) for settings in each}) > 1
    ]
    parts: list[Part] = [table(rows, ("setting", *names), mono=1)] if rows else [words("Nothing but where they lie.")]
    return Section("differences", "Differences", "What differs in their settings", "", parts)
