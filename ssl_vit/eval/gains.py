"""From the scores of pairs of runs to a sentence: do the weights help?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssl_vit.eval.intervals import half_interval

Scores = Mapping[str, float]  # of one run: "mAP", "mIoU", …, percent


def gain_summary(
    scratch: Sequence[Scores],
    weights: Sequence[Scores],
    backbone: Sequence[Scores] | None = None,
    metric: str = "mAP",
) -> dict[str, Any]:
    """Runs in pairs (the same seed at the same place) become a summary: each score's mean with its 95 % interval over
    the seeds (Student's t), the difference within pairs likewise, and a verdict on `metric`.

    backbone: of detectors that began with the backbone's weights alone, where the rest was pretrained too.

    >>> found = gain_summary([{"mAP": 10.0}, {"mAP": 12.0}], [{"mAP": 15.0}, {"mAP": 17.5}])
    >>> found["difference"]["mAP"]["mean"], found["verdict"]
    (5.25, 'the weights help: +5.2 mAP, 95 % interval +2.1 to +8.4 over 2 seeds')
    """
    difference = _apart(scratch, weights)
    found = {"scratch": _means(scratch), "weights": _means(weights), "difference": difference}
    if backbone is None:
        return found | {"verdict": verdict(difference[metric], metric)}
    beyond = _apart(backbone, weights)
    told, alone = verdict(difference[metric], metric), verdict(beyond[metric], metric)
    told = f"{told}; against the backbone's weights alone: {alone}"
    return found | {"backbone": _means(backbone), "difference_from_backbone": beyond, "verdict": told}


def verdict(difference: Mapping[str, Any], metric: str) -> str:
    """The verdict says in words what a difference, as ``gain_summary`` gives it, allows to be said."""
    mean, seeds = difference["mean"], len(difference["seeds"])
    if "low" not in difference:
        return f"{mean:+.1f} {metric} with the weights, of one seed: no word about chance; give --seeds 0,1,2"
    low, high = difference["low"], difference["high"]
    told = f"{mean:+.1f} {metric}, 95 % interval {low:+.1f} to {high:+.1f} over {seeds} seeds"
    if low > 0:
        return f"the weights help: {told}"
    if high < 0:
        return f"the weights hurt: {told}"
    return f"no difference can be told: {told}"


def _means(runs: Sequence[Scores]) -> dict[str, Any]:
    return {name: _mean([run[name] for run in runs]) for name in runs[0]}


def _apart(before: Sequence[Scores], after: Sequence[Scores]) -> dict[str, Any]:
    """By how much the second of each pair is better."""
    return {name: _mean([b[name] - a[name] for a, b in zip(before, after, strict=True)]) for name in before[0]}


def _mean(values: Sequence[float]) -> dict[str, Any]:
    mean = float(np.mean(values))
    found: dict[str, Any] = {"mean": mean}
    if len(values) > 1:
        half = half_interval(list(values))
        found |= {"low": mean - half, "high": mean + half}
    return found | {"seeds": list(values)}
