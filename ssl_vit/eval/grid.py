"""Linear classifiers over layers x pooling x learning rate, as DINOv2 scores features (arXiv 2304.07193)."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_vit.backbones.intermediates import has_class_token, layer_count
from ssl_vit.eval.job import Job, Outcome
from ssl_vit.eval.linear import CLASSIFIER, RATES, LinearProbe, percent, settle, trial
from ssl_vit.eval.readout import LayerColumns, layer_columns


class Choice(NamedTuple):
    """A choice is one set of columns among the features that were read."""

    layers: int  # the last so many
    pooling: str
    columns: NDArray[np.int64]


def score(job: Job, depths: tuple[int, ...]) -> Outcome:
    """The kind "grid" gives top-1 in percent; all is chosen on a part of train before an image of val is read."""
    train, val = job.labelled()
    deepest = min(max(depths), layer_count(job.backbone))
    pooling = "class+mean" if has_class_token(job.backbone) else "mean"
    job.readout = replace(job.readout, layers=tuple(range(-deepest, 0)), pooling=pooling)
    bank = job.features(train, "train")
    choices = candidates(layer_columns(job.backbone, job.readout), depths)
    best, probe, tried = fit_grid(bank.features, bank.labels, choices, job.seed, job.device, job.dtype)
    tested = job.features(val, "val")
    correct = probe.predict(tested.features[:, best.columns]) == tested.labels
    return Outcome(
        scores={"top1": percent(correct), "lr": probe.rate, "layers": best.layers, "pooling": best.pooling},
        settings={
            "classifier": CLASSIFIER,
            "chosen_on": "a tenth of each class of train; then trained again on all of train",
            "grid": {"layers": list(depths), "pooling": pooling, "lr": list(RATES)},
        },
        seed=job.seed,
        more={"held_out": tried},
        correct=correct,
    )


def candidates(found: list[LayerColumns], depths: tuple[int, ...]) -> list[Choice]:
    """For each depth, the choices are class tokens, means of the patches, and both, of the last so many layers."""
    layers = sorted({part.layer for part in found})
    kinds = list(dict.fromkeys(part.pooling for part in found))
    choices = []
    for depth in sorted({min(depth, len(layers)) for depth in depths}):
        for kept in [(kind,) for kind in kinds] + [tuple(kinds)] * (len(kinds) > 1):
            taken = [part for part in found if part.layer in layers[-depth:] and part.pooling in kept]
            columns = np.concatenate([np.arange(part.start, part.stop) for part in taken])
            choices.append(Choice(depth, "+".join(kept), columns))
    return choices


def fit_grid(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    choices: list[Choice],
    seed: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Choice, LinearProbe, dict[str, dict[str, float]]]:
    """Find the best choice on a tenth of each class; with it come its classifier, of all images, and what each reached.

    All learning rates of a choice are trained at once, see ``fit_linear``; features [N, D] are read once for all.
    """
    tried = [trial(features[:, choice.columns], labels, seed=seed, device=device, dtype=dtype) for choice in choices]
    place, rate = min(
        ((i, rate) for i, rates in enumerate(tried) for rate in rates), key=lambda at: tried[at[0]][at[1]]
    )
    best = choices[place]
    probe = settle(features[:, best.columns], labels, rate, seed=seed, device=device, dtype=dtype)
    held_out = {
        f"last {choice.layers}, {choice.pooling}": {str(rate): -worst for rate, (worst, _) in rates.items()}
        for choice, rates in zip(choices, tried, strict=True)
    }
    return best, probe, held_out
