"""Results of ``ssl-vit eval`` and ``compare`` become parts of a page, each kind as it is best read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ssl_vit.report import kept
from ssl_vit.report.charts import Interval, Line, interval_chart, line_chart
from ssl_vit.report.curves import Curve
from ssl_vit.report.parts import Part, charts, table, words

_OTHERS = ("data.json", "environment.json", "summary.json")  # JSON of a run that is no result
FOLDER = "scores"

Result = Mapping[str, Any]


def found_in(run: Path) -> list[tuple[Path, Result]]:
    """The results that lie in a run's folder, or in its folder "scores", with their files."""
    paths = [*sorted(run.glob("*.json")), *sorted((run / FOLDER).glob("*.json"))]
    found = [(path, kept.as_json(path)) for path in paths if path.name not in _OTHERS]
    return [(path, each) for path, each in found if is_result(each)]


def is_result(found: Any) -> bool:
    """Whether something read from JSON is a result of ours."""
    return isinstance(found, dict) and "protocol" in found and (_kind(found) is not None)


def _kind(found: Result) -> str | None:
    if "entries" in found:
        return "compare"
    protocol = found["protocol"]
    kind = protocol.get("score") if isinstance(protocol, dict) else None
    return kind if isinstance(kind, str) and kind in found else None


def parts_of(title: str, result: Result) -> list[Part]:
    """A result's title, what it found, and its protocol."""
    kind = _kind(result)
    assert kind is not None
    if kind == "compare":
        head = f"{result['kind']}, {result['images']:,} images, protocol {result['protocol']}"
        return [words(head, f"Compared ({title})", "note"), *_compared(result)]
    protocol = result["protocol"]
    weights = str(protocol.get("weights_sha256"))[:12]
    text = f"{protocol.get('encoder')}, weights {weights}, protocol {protocol.get('hash')}"
    made = _DRAWN.get(kind, _plain)(result[kind])
    rows = [(key, _said(value)) for key, value in protocol.items()]
    return [words(text, f"{kind.capitalize()} ({title})", "note"), *made, table(rows, mono=2, title="its protocol")]


def _compared(result: Result) -> list[Part]:
    entries = result["entries"]
    top1 = [Interval(str(e["run"]), e["top1"], e["low"], e["high"]) for e in entries]
    apart = [
        Interval(
            str(e["run"]),
            e["difference"],
            e["difference_low"],
            e["difference_high"],
            f"{e['difference']:+.1f}, p {e['p']:.2g}",
            strong=e["p"] < 0.05,
        )
        for e in entries
        if e["difference"] is not None
    ]
    drawn = [("Top-1, %", "95 % intervals", interval_chart(top1, "top-1"))]
    drawn += [
        ("Against the first, points", "grey: may be chance", interval_chart(apart, "against the first", zero=True))
    ]
    return [charts(drawn)]


def _pairs(found: Result) -> list[Part]:
    """What was learnt from scratch and from the weights, over seeds, by share of the labels."""
    parts = []
    for share, summary in found.items():
        arms = [name for name in _ARMS if name in summary]
        names = list(summary[arms[0]])
        first = [(_ARMS[arm], summary[arm][names[0]]) for arm in arms]
        rows = [Interval(name, each["mean"], each.get("low"), each.get("high")) for name, each in first]
        title = f"{names[0]}, %"
        parts.append(words(str(summary.get("verdict", "")), f"{share} of the labels"))
        parts.append(charts([(title, "mean over seeds, 95 % intervals", interval_chart(rows, f"{title} {share}"))]))
        cells = [(score, *(f"{summary[arm][score]['mean']:.1f}" for arm in arms)) for score in names]
        head = ("score", *(_ARMS[arm] for arm in arms))
        parts.append(table(cells, head, numbers=range(1, len(head)), title="all scores"))
    return parts


_ARMS = {"scratch": "from scratch", "backbone": "from the backbone", "weights": "from the weights"}


def _robustness(found: Result) -> list[Part]:
    """Top-1 of each corruption and severity, shaded by what it loses, and curves of the rest."""
    clean = float(found["clean"])
    parts: list[Part] = [words(f"Clean images: {clean:.1f} % top-1.")]
    if corruptions := found.get("corruptions"):
        levels = list(next(iter(corruptions.values())))
        rows = [[name.replace("_", " "), *each.values()] for name, each in corruptions.items()]
        made = table([[row[0], *(f"{v:.1f}" for v in row[1:])] for row in rows], ("corruption", *levels))
        made |= {"kind": "heat", "numbers": list(range(1, len(levels) + 1))}
        for cells, row in zip(made["rows"], rows, strict=True):
            cells["shades"] = [None, *(round(80 * max(0.0, clean - v) / max(clean, 1)) for v in row[1:])]
        parts += [words("Top-1 by severity; darker: more is lost.", kind="note"), made]
    lines = []
    for key, title, label in _CHANGES:
        if values := found.get(key):
            xs, ys = [0.0, *(float(x) for x in values)], [clean, *(float(y) for y in values.values())]
            lines.append((title, label, _xy(xs, ys, title, label)))
    return [*parts, charts(lines)]


_CHANGES = (
    ("hidden", "Patches hidden", "% of them"),
    ("shuffled", "Tiles shuffled", "tiles a side"),
    ("fgsm", "FGSM", "largest change, 255ths"),
    ("pgd", "PGD", "largest change, 255ths"),
)


def _xy(xs: list[float], ys: list[float], title: str, x_label: str, bottom: float | None = 0) -> Any:
    x, y = np.array(xs), np.array(ys)
    line = Line(title, Curve(x, y, y, y), 1, dots=True)
    return line_chart([line], title, bottom=bottom, x_label=x_label)


def _budget(found: Result) -> list[Part]:
    """Top-1 over multiply-adds, and over milliseconds."""
    points = sorted(found["points"], key=lambda point: float(point["gmacs"]))
    top1 = [float(point["top1"]) for point in points]
    drawn = [("Top-1, %", "over multiply-adds", _xy([p["gmacs"] for p in points], top1, "top-1", "1e9 an image", None))]
    for batch in points[0].get("ms", {}):
        timed = sorted((float(point["ms"][batch]), float(point["top1"])) for point in points)
        xs, ys = [ms for ms, _ in timed], [value for _, value in timed]
        drawn.append(("Top-1, %", f"over time, batches of {batch}", _xy(xs, ys, "top-1", "ms an image", None)))
    return [charts(drawn)]


def _plain(found: Any) -> list[Part]:
    """Names and numbers."""
    rows = list(_flat(found)) if isinstance(found, dict) else [("", _said(found))]
    return [table(rows, numbers=(1,)) | {"kind": "tight"}]


def _flat(found: Result, before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in found.items():
        name = f"{before}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{name}, ")
        else:
            yield name, _said(value)


def _said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_said(each)}" for key, each in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_said, value)) or "none"
    return "none" if value is None else str(value)


def _segmentation(found: Result) -> list[Part]:
    """mIoU and pixel accuracy of each classifier of the frozen patches, or of segmenters that were trained."""
    if not any(name in found for name in _CLASSIFIERS):
        return _pairs(found)
    drawn = []
    for score, title in (("mIoU", "mIoU, %"), ("accuracy", "Pixel accuracy, %")):
        rows = [Interval(_CLASSIFIERS.get(name, name), each[score]) for name, each in found.items()]
        drawn.append((title, "", interval_chart(rows, title)))
    return [charts(drawn)]


_CLASSIFIERS = {"linear": "a linear classifier", "knn": "the nearest patches"}
_DRAWN: dict[str, Callable[[Any], list[Part]]] = {
    "detection": _pairs,
    "robustness": _robustness,
    "budget": _budget,
    "segmentation": _segmentation,
}
