"""Retrieval: each image of val asks, all of train is ranked by cosine similarity."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssl_vit.eval.job import Job, Outcome
from ssl_vit.eval.knn import unit

_ASKED = 256  # queries ranked at once: bounds the similarities to _ASKED x N


def score(job: Job, k: tuple[int, ...]) -> Outcome:
    """The kind "retrieval" gives mAP over the whole ranking and recall@k, in percent."""
    train, val = job.labelled()
    bank, asked = job.features(train, "train"), job.features(val, "val")
    return Outcome(retrieve(bank.features, bank.labels, asked.features, asked.labels, k), {"k": list(k)})


def retrieve(
    bank: NDArray[np.float32],
    labels: NDArray[np.int64],
    queries: NDArray[np.float32],
    wanted: NDArray[np.int64],
    ks: tuple[int, ...] = (1, 5, 10),
) -> dict[str, float]:
    """The queries give mean average precision, and how often one of the first k is of their class, in percent.

    bank [N, D] with labels [N], queries [M, D] with labels [M]; every label of a query must be in the bank.
    """
    bank, precision, hits = unit(bank), list[float](), dict.fromkeys(ks, 0)
    for start in range(0, len(queries), _ASKED):
        rows = slice(start, start + _ASKED)
        order = np.argsort(-(unit(queries[rows]) @ bank.T), axis=1, kind="stable")
        right = labels[order] == wanted[rows, None]
        found = right.cumsum(1) / np.arange(1, len(bank) + 1)
        precision += ((found * right).sum(1) / right.sum(1)).tolist()
        for k in ks:
            hits[k] += int(right[:, :k].any(1).sum())
    recall = {f"recall@{k}": 100 * hit / len(queries) for k, hit in hits.items()}
    return {"mAP": 100 * float(np.mean(precision))} | recall
