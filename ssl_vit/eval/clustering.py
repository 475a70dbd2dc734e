"""k-means on unit features, as many clusters as classes: how well they agree with the labels."""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

from ssl_vit.eval.job import Job, Outcome
from ssl_vit.eval.knn import unit
from ssl_vit.eval.labelled import open_labelled

ITERATIONS, STARTS = 50, 20


def score(job: Job) -> Outcome:
    """The kind "clustering" gives NMI and ARI of the clusters of val with its labels, both times 100."""
    source = open_labelled(job.folders["val"], "val", job.outside_links)
    job.classes = len(source.classes)
    found = job.features(source, "val")
    clusters = k_means(found.features, job.classes, job.seed)
    scores = {"NMI": 100 * nmi(found.labels, clusters), "ARI": 100 * ari(found.labels, clusters)}
    return Outcome(scores, {"clusters": job.classes, "iterations": ITERATIONS, "starts": STARTS}, seed=job.seed)


def k_means(features: NDArray[np.float32], clusters: int, seed: int) -> NDArray[np.int64]:
    """k-means puts every row into a cluster [N]; the best of several starts is kept."""
    x = unit(features)
    found = faiss.Kmeans(
        x.shape[1], clusters, niter=ITERATIONS, nredo=STARTS, seed=seed, min_points_per_centroid=1,
        max_points_per_centroid=len(x),
    )  # fmt: skip
    found.train(x)
    nearest: NDArray[np.int64] = found.index.search(x, 1)[1][:, 0]
    return nearest


def nmi(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """NMI is the mutual information over the mean of the entropies; it is 1 where the two say the same.

    >>> nmi(np.array([0, 0, 1, 1]), np.array([5, 5, 3, 3]))
    1.0
    """
    table = _table(a, b) / len(a)
    rows, columns = table.sum(1), table.sum(0)
    there = table > 0
    shared = float((table[there] * np.log(table[there] / np.outer(rows, columns)[there])).sum())
    entropy = -sum(float((p[p > 0] * np.log(p[p > 0])).sum()) for p in (rows, columns)) / 2
    return shared / entropy if entropy else 1.0


def ari(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """ARI, the adjusted Rand index, measures agreement of pairs: 0 by chance, 1 where the two say the same.

    >>> ari(np.array([0, 0, 1, 1]), np.array([5, 5, 3, 3]))
    1.0
    """
    table = _table(a, b)
    pairs, rows, columns = (float((n * (n - 1)).sum()) / 2 for n in (table, table.sum(1), table.sum(0)))
    expected = rows * columns / (len(a) * (len(a) - 1) / 2)
    highest = (rows + columns) / 2
    return (pairs - expected) / (highest - expected) if highest != expected else 1.0


def _table(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
    """How many rows are in each pair of classes."""
    rows, columns = (np.unique(each, return_inverse=True)[1] for each in (a, b))
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(table, (rows, columns), 1)
    return table
