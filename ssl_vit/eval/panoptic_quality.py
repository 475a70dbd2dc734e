"""Panoptic quality, as COCO's own panopticapi measures it (arXiv 1801.00868)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ssl_vit.data.segments import NOWHERE, Segments

MATCHED = 0.5  # a pair whose overlap is more has no rival


class PanopticQuality:
    """Segments found are compared with those that are there, image by image.

    A pair of one class whose intersection is more than half of their union is a match. Pixels that don't count are no
    part of the union, and a segment of which more than half lies there, or on a crowd of its class, is not wrong.
    """

    def __init__(self, things: Sequence[bool]) -> None:
        self.things = np.array(things, bool)
        self.overlap = np.zeros(len(things))  # of all matches of a class, summed
        self.matched, self.wrong, self.missed = np.zeros((3, len(things)), np.int64)

    def add(self, truth: Segments, found: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        """Note one image; found: [H, W], each pixel's place in `labels` [m], NOWHERE for none."""
        there, said = len(truth.labels), len(labels)
        pairs = np.where(truth.map == NOWHERE, there, truth.map).astype(np.int64) * (said + 1)
        pairs += np.where(found == NOWHERE, said, found)
        shared = np.bincount(pairs.ravel(), minlength=(there + 1) * (said + 1)).reshape(there + 1, said + 1)
        own, other = shared[:there].sum(1), shared[:, :said].sum(0)
        both = shared[:there, :said]
        union = own[:, None] + other - both - shared[there, :said]
        same = (truth.labels[:, None] == labels) & ~truth.crowd[:, None]
        iou = np.where(same, both / np.maximum(union, 1), 0.0)
        rows, columns = np.nonzero(iou > MATCHED)
        np.add.at(self.overlap, truth.labels[rows], iou[rows, columns])
        np.add.at(self.matched, truth.labels[rows], 1)
        missed = np.setdiff1d(np.flatnonzero((own > 0) & ~truth.crowd), rows)
        np.add.at(self.missed, truth.labels[missed], 1)
        crowds = (truth.labels[:, None] == labels) & truth.crowd[:, None]
        excused = shared[there, :said] + (both * crowds).sum(0) > MATCHED * other
        wrong = np.setdiff1d(np.flatnonzero((other > 0) & ~excused), columns)
        np.add.at(self.wrong, labels[wrong], 1)

    def scores(self) -> dict[str, float]:
        """In percent, means over the classes that are there or were found; nan where no class is.

        PQ, its parts (SQ: how well matches overlap; RQ: how many there are), and PQ of things and of stuff alone.
        """
        seen = self.matched + self.missed + self.wrong > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            segmented = np.where(self.matched > 0, self.overlap / self.matched, 0.0)
            recognised = self.matched / (self.matched + 0.5 * self.wrong + 0.5 * self.missed)
        quality = segmented * recognised

        def mean(values: NDArray[np.float64], chosen: NDArray[np.bool_]) -> float:
            return 100 * float(values[chosen].mean()) if chosen.any() else float("nan")

        return {
            "PQ": mean(quality, seen),
            "SQ": mean(segmented, seen),
            "RQ": mean(recognised, seen),
            "PQ_things": mean(quality, seen & self.things),
            "PQ_stuff": mean(quality, seen & ~self.things),
        }
