"""The sections of a run's page, each from the run's folder; one that has nothing to show is left out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ssl_vit.report import kept
from ssl_vit.report.charts import COLOURS, Level, Line, line_chart, number, scatter
from ssl_vit.report.curves import KNN, Series
from ssl_vit.report.parts import Part, Room, Section, charts, table, words
from ssl_vit.report.results import found_in, parts_of
from ssl_vit.report.story import Story

Builder = Callable[[Story, Room], Section | None]
_KNOWN = {"loss", "lr", "grad_norm", "blind_loss"}  # numbers of a step that have a chart of their own
_ODD = ("left out", "unreadable", "schedule")  # rows of the opening table that are worth a second look


def curves(story: Story, room: Room) -> Section | None:
    """Loss, rank, entropy and k-NN over images seen."""
    metrics, batch = story.metrics, story.batch
    if "loss" not in metrics.steps:
        return None
    loss = metrics.steps["loss"].curve()
    guess = metrics.steps.get("blind_loss")
    uniform = story.check("uniform_loss")
    lines = [Line("loss", loss)] + ([Line("guess", guess.curve(), 7)] if guess else [])
    levels = [Level("no information", uniform)] if uniform is not None and not guess else []
    small = "grey: the best guess that doesn't look at the image" if guess else ""
    found = [("Loss", small, line_chart(lines, "loss", per_step=batch, levels=levels))]
    found += [
        _of_checks(story, "rank", "Dimensions in use", "RankMe; a collapse is near 1", 2),
        _own_view(story),
        *_knn(story),
        *_entropies(story),
    ]
    note = "Over images seen. The loss alone says little; what the features tell apart says more."
    own = [
        (name.replace("_", " "), "", line_chart([Line(name, series.curve(), 2)], name, per_step=batch, narrow=True))
        for name, series in sorted(metrics.steps.items())
        if name not in _KNOWN and not name.endswith("_entropy") and len(series.steps)
    ]
    own += [
        (title, "", line_chart([Line(key, metrics.steps[key].curve(), 2)], title, per_step=batch, narrow=True))
        for key, title in (("lr", "learning rate"), ("grad_norm", "gradient's norm, before clipping"))
        if key in metrics.steps
    ]
    parts = [charts(found), words("", "The method's own numbers, and the optimiser's"), charts(own, small=True)]
    return Section("curves", "Curves", "Is it learning?", note, parts)


def _of_checks(story: Story, key: str, title: str, small: str, colour: int) -> Any:
    line = Line(title, story.metrics.of_checks(key).curve(), colour, dots=True)
    return title, small, line_chart([line], title, per_step=story.batch, end=story.done, bottom=0)


def _own_view(story: Story) -> Any:
    start, views = story.check("own_view_start"), story.check("views")
    levels = [Level("at the start", 100 * start)] if start is not None else []
    levels += [Level("by chance", 100 / (views - 1))] if views else []
    line = Line("share", story.metrics.of_checks("own_view").times(1, 100).curve(), 4, dots=True)
    svg = line_chart([line], "own view", per_step=story.batch, levels=levels, bottom=0, end=story.done)
    return "Views that find their image's other one, %", "of views held back", svg


def _knn(story: Story) -> list[Any]:
    k = story.best_k
    if k is None:
        return []
    line = Line(f"k = {k}", story.metrics.of_scores(KNN + k).curve(), 1, dots=True)
    svg = line_chart([line], "k-NN top-1", per_step=story.batch, end=story.done)
    return [(f"k-NN top-1, % (k = {k})", "labelled images, never learnt from", svg)]


def _entropies(story: Story) -> list[Any]:
    found = sorted(name for name in story.metrics.steps if name.endswith("_entropy"))
    if not found:
        return []
    lines = [
        Line(name.removesuffix("_entropy").replace("_", " "), story.metrics.steps[name].curve(), place)
        for place, name in enumerate(found)
    ]
    uniform = story.check("uniform_loss")
    levels = [Level("uniform", uniform)] if uniform is not None else []
    svg = line_chart(lines, "entropy", per_step=story.batch, levels=levels, bottom=0)
    return [("Entropy of the targets, nats", ", ".join(line.name for line in lines), svg)]


def data(story: Story, room: Room) -> Section | None:
    """The table that the run showed at its start, its oddities marked, and the files that could not be read."""
    rows = [(str(subject), str(text)) for subject, text in story.opening.get("rows", [])]
    parts: list[Part] = []
    if rows:
        odd = [(subject in _ODD and text != "nothing") or "of several pages" in text for subject, text in rows]
        parts.append(table(rows, odd=odd))
    bad = _bad_files(story)
    if bad:
        title = f"{len(bad)} files that could not be read" + (", the first 200" if len(bad) == 200 else "")
        parts.append(table(bad, ("file", "why"), mono=1, title=title))
    note = "What the run looked at, as it said at its start; what is marked deserves a second look."
    return Section("data", "Data", "What it learns from", note, parts) if parts else None


def _bad_files(story: Story) -> list[tuple[str, str]]:
    path = story.run / "bad_images.jsonl"
    found = []
    if path.is_file():
        for line in path.read_bytes().splitlines()[:200]:
            row = kept.as_line(line)
            if row:
                found.append((str(row.get("file", "")), str(row.get("reason", ""))))
    return found


def views(story: Story, room: Room) -> Section | None:
    """The views that a step learns from, of a few images."""
    said = kept.get(story.run, kept.VIEWS) or {}
    strips = [("the images", story.file(kept.PHOTOS))]
    strips += [(name, story.file(f"view-{place}.jpg")) for place, name in enumerate(said.get("views", []))]
    rows = [(name, src) for name, path in strips if (src := room.picture(path))]
    if len(rows) < 2:
        return None
    note = (
        "Below each image is the very kind of views that a step gets of it. What a view hides or changes is what the "
        "network learns to ignore: what tells your images apart must still be there."
    )
    return Section("views", "Views", "What a step sees of an image", note, [_strips(story, rows)])


def _strips(story: Story, rows: list[tuple[str, str]]) -> Part:
    """Strips of the images that larger pictures are of, with their names."""
    return {"macro": "strips", "rows": rows, "count": max(1, len(story.sample.get("shown", [])))}


def neighbours(story: Story, room: Room) -> Section | None:
    """The nearest images of a few, at the start and now."""
    times = [("before the first step", story.start), (_when(story), story.now)]
    times = [(name, seen) for name, seen in times if seen.get("neighbours")]
    if not times or not story.sample:
        return None
    rows = []
    for place, (query, _) in enumerate(times[0][1]["neighbours"]):
        near = [seen["neighbours"][place][1] for _, seen in times]
        groups = [[_tile(story, row, cosine, query) for row, cosine in each] for each in near]
        rows.append({"query": _tile(story, query), "groups": groups})
    note = "The outlined image's nearest others by the cosine of their features, nearest first."
    if said := _shares(story, times):
        note += f" Green: of its class, which the run doesn't learn from ({said})."
    return Section(
        "neighbours",
        "Neighbours",
        "What it finds alike",
        note,
        [{"macro": "near", "rows": rows, "names": [name for name, _ in times]}],
    )


def _when(story: Story) -> str:
    step = story.now.get("step")
    return f"after {number(step * story.batch)} images" if isinstance(step, int) else "now"


def _classes(story: Story) -> list[str]:
    labels = story.sample.get("labels") or [-1]
    return list(story.sample.get("classes", [])) if max(labels) >= 0 else []


def _shares(story: Story, times: list[tuple[str, dict[str, Any]]]) -> str:
    """How many of the neighbours are of the query's class; "" where none can be."""
    labels, found, most = story.sample["labels"], [], 0
    for name, seen in times:
        pairs = [(query, row) for query, near in seen["neighbours"] for row, _ in near]
        found.append(f"{name} {sum(labels[query] == labels[row] >= 0 for query, row in pairs)}")
        most = sum(
            min(len(near), labels.count(labels[query]) - 1) for query, near in seen["neighbours"] if labels[query] >= 0
        )
    return f"{', '.join(found)}, of {most} that could be" if most else ""


def _tile(story: Story, row: int, near: float | None = None, query: int | None = None) -> dict[str, Any]:
    """A tile of the sheet, by places in percent, and its words."""
    labels = story.sample["labels"]
    down, across = divmod(row, kept.ROW)
    rows = tile_rows(story)
    kind = "query" if query is None else "same" if labels[row] == labels[query] >= 0 else "plain"
    cosine = f", cosine {near:.2f}" if near is not None else ""
    place = {"x": round(100 * across / (kept.ROW - 1), 3), "y": round(100 * down / (rows - 1), 3) if rows > 1 else 0}
    return place | {"kind": kind, "said": _said(story, row) + cosine}


def tile_rows(story: Story) -> int:
    """Rows of the sheet of tiles."""
    return max(1, -(-len(story.sample.get("names", [])) // kept.ROW))


def _said(story: Story, row: int) -> str:
    label, classes = story.sample["labels"][row], _classes(story)
    name = str(story.sample["names"][row])
    return f"{name} ({classes[label]})" if 0 <= label < len(classes) else name


def patches(story: Story, room: Room) -> Section | None:
    """Patches as colours, and where heads look or features are strong."""
    photos = room.picture(story.file(kept.PHOTOS))
    coloured = [
        (title, room.picture(story.file(f"{when}-patches.png")))
        for title, when in (("at the start", kept.START), (_when(story), kept.NOW))
    ]
    if photos is None or not any(src for _, src in coloured):
        return None
    first = [("the images", photos), *((title, src) for title, src in coloured if src)]
    parts: list[Part] = [
        words(
            "The three main components of all patches of these images are red, green and blue: where two patches "
            "have one colour, the network says the same of them. Parts of things should come apart from what is "
            "behind them.",
            "Patch tokens as colours",
            "note",
        ),
        _strips(story, first),
    ]
    seen, when = (story.now, kept.NOW) if story.now else (story.start, kept.START)
    names = [name for name in seen.get("cells", []) if name != "patches"]
    strips = [(_titled(name), room.picture(story.file(f"{when}-{name}.png"))) for name in names]
    rows = [("the images", photos), *((name, src) for name, src in strips if src)]
    parts += [_heads(seen, when, story), _strips(story, rows)]
    return Section("patches", "Patches", "What it sees in an image", "", parts)


def _titled(name: str) -> str:
    """The name of a picture of patches; heads are counted from 1."""
    head = name.removeprefix("head-")
    return f"head {int(head) + 1}" if head.isdecimal() else name


def _heads(seen: dict[str, Any], when: str, story: Story) -> Part:
    at = _when(story) if when == kept.NOW else "before the first step"
    if "heads" in seen:
        whose = "Where the class token looks" if seen.get("whose") == "class token" else "Where all patches look, mean"
        text = f"{whose}, by head of the last attention, from dark to bright, each image by itself; {at}."
        return words(text, "Self-attention", "note")
    text = f"The length of each patch's features, from dark to bright, each image by itself; {at}."
    return words(text, "Where features are strong", "note")


def embedding(story: Story, room: Room) -> Section | None:
    """The map of the sample, at the start and now."""
    times = [("At the start", kept.START, story.start), (_when(story).capitalize(), kept.NOW, story.now)]
    times = [each for each in times if each[2].get("map")]
    if not times or not story.sample:
        return None
    labels, classes = story.sample["labels"], _classes(story)
    few = 0 < len(classes) <= COLOURS
    groups = labels if few else [-1] * len(labels)
    said = [_said(story, row) for row in range(len(labels))]
    maps = [
        {
            "title": title,
            "small": f"{seen['share']:.0%} of the variance",
            "svg": scatter(seen["map"], groups, said, title, shown="tiles"),
        }
        for title, _, seen in times
    ]
    legend = [(name, place) for place, name in enumerate(classes)] if few else []
    note = (
        f"{len(labels)} of the run's images, on the two main components of their features. Point at one to see it; "
        "it is marked in both. Two components show little of many: groups that touch here may be apart in others."
    )
    part = {"macro": "maps", "maps": maps, "legend": legend}
    return Section("map", "Map", "How the images lie", note, [part])


def drawn(story: Story, room: Room) -> Section | None:
    """What the method itself has drawn: reconstructions, a tokenizer's words, regions and boxes."""
    parts: list[Part] = []
    strips = [(name, room.picture(story.file(f"now-drawn-{name}.jpg"))) for name in story.now.get("drawn", [])]
    if any(src for _, src in strips):
        photos = room.picture(story.file(kept.PHOTOS))
        text = f"What the method makes of images that it sees a part of; {_when(story)}."
        parts.append(words(text, "Reconstructions", "note"))
        rows = [("the images", photos), *((name.replace("-", " "), src) for name, src in strips)]
        parts.append(_strips(story, [(name, src) for name, src in rows if src]))
    for name, title, text in _ARTEFACTS:
        if src := room.picture(story.run / name):
            parts += [words(text, title, "note"), {"macro": "picture", "src": src, "alt": title}]
    return Section("method", "Method", "What the method draws", "", parts) if parts else None


_ARTEFACTS = (
    (
        "tokenizer.png",
        "The tokenizer's words",
        "Images, and what their visual words alone say of them.",
    ),
    (
        "regions.png",
        "Proposals and boxes",
        "Proposed regions drawn through, what the detector finds dashed.",
    ),
    ("queries.png", "Queries", "What the detector's queries look at."),
)


def speed(story: Story, room: Room) -> Section | None:
    """Images a second, the share of waiting for data, and memory; and on what."""
    rows = _speeds(story)
    lines = []
    for key, title, small, factor in (
        ("images_per_second", "Images a second", "mean", 1),
        ("wait", "Waiting for data, %", "a few are fine", 100),
        ("gb", "Memory, GB", "the most so far", 1),
    ):
        line = Line(title, _speed_curve(rows, key, factor), 0, dots=True)
        lines.append((title, small, line_chart([line], title, per_step=story.batch, bottom=0, narrow=True)))
    parts: list[Part] = [charts(lines, small=True)] if rows else []
    if story.environment:
        parts.append(
            table([(key, _plain(value)) for key, value in story.environment.items()], title="Versions and machine")
        )
    return Section("speed", "Speed", "How fast it is", "", parts) if parts else None


def _speeds(story: Story) -> list[dict[str, Any]]:
    path = story.file(kept.SPEED)
    rows = [kept.as_line(line) for line in path.read_bytes().splitlines()] if path else []
    by_step = {row["step"]: row for row in rows if row and isinstance(row.get("step"), int)}
    return [by_step[step] for step in sorted(by_step)]


def _speed_curve(rows: list[dict[str, Any]], key: str, factor: float) -> Any:
    found = Series()
    for row in rows:
        if isinstance(value := row.get(key), int | float) and math.isfinite(value):
            found.add(row["step"], value * factor)
    return found.curve()


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def settings(story: Story, room: Room) -> Section | None:
    """The resolved configuration, with the reasons for what the run chose."""
    rows = list(story.settings())
    if not rows:
        return None
    chosen = [row for row in rows if row[2]]
    parts: list[Part] = []
    if chosen:
        parts.append(table(chosen, ("chosen for you", "value", "why"), mono=2))
    others = [row[:2] for row in rows if not row[2]]
    parts.append(table(others, ("given, or by default", "value"), mono=2, title=f"{len(others)} other settings"))
    note = "With config.yaml in this folder the run can be done again; change a setting with --set KEY=VALUE."
    return Section("settings", "Settings", "How it was done, and why", note, parts)


def protocols(story: Story, room: Room) -> Section | None:
    """All that each number of this page depends on."""
    rows = [
        (
            "Loss, and the method's numbers",
            "of the batch of each step, mean over devices; drawn as means of equal parts of the run",
        ),
        (
            "Dimensions in use",
            "RankMe (arXiv 2210.02885) of the features of the newest 2,048 images at most, as trained on",
        ),
        (
            "Views that find their own",
            "two views each of some images, drawn beside those of the steps; nearest by cosine after subtracting "
            "the mean, of the network that is exported",
        ),
        ("Neighbours, map, patches", _of_sample(story)),
        ("Intervals of shares", "Wilson's, 95 %: how far chance alone may have moved them, of these images"),
    ]
    parts = [table(rows)]
    if story.scores:
        said = story.metrics.scores[-1].get("protocol")
        if isinstance(said, dict):
            title = f"k-NN: protocol {said.get('hash', '')}"
            parts.append(table([(key, _plain_dict(value)) for key, value in said.items()], mono=2, title=title))
    note = "Two numbers may stand in one table where these agree."
    return Section("protocols", "Protocols", "What the numbers mean", note, parts)


def _of_sample(story: Story) -> str:
    count = len(story.sample.get("names", []))
    return (
        f"{count} of the run's own images, evenly spaced; shorter side resized, central crop, nothing augmented; "
        "features of the network that is exported, in evaluation mode"
    )


def _plain_dict(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items()) or "none"
    return "none" if value is None else _plain(value)


def export(story: Story, room: Room) -> Section | None:
    """How the weights are loaded."""
    if not story.snippets:
        return None
    parts = [{"macro": "code", "title": folder, "text": text} for folder, text in story.snippets]
    parts.append(
        words("Other libraries: ssl-vit export RUN --to torchvision, detectron2, transformers, onnx …", kind="note")
    )
    return Section(
        "export", "Export", "Take the weights with you", "This code was run, and what it gives was compared.", parts
    )


def scores(story: Story, room: Room) -> Section | None:
    """Results of ``ssl-vit eval`` and ``compare`` that lie in the run's folder."""
    found = found_in(story.run)
    parts = [part for path, result in found for part in parts_of(path.name, result)]
    note = "Results that were written into this folder (--json RUN/NAME.json)."
    return Section("scores", "Scores", "What it is worth", note, parts) if parts else None


BUILDERS: tuple[Builder, ...] = (
    curves, scores, neighbours, embedding, patches, drawn, views, data, speed, settings, protocols, export,
)  # fmt: skip
