"""Weighted k-nearest neighbours, as DINO scores features (arXiv 2104.14294): exact, in one search for every k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from ssl_vit.errors import RunFailed, UserError

_QUERIES = 1024  # voted on at once: bounds the vote table to _QUERIES x classes


@dataclass(frozen=True)
class KnnResult:
    """What k-NN found, by each k that was asked for."""

    top1: dict[int, float]  # percent of the test images
    predictions: dict[int, NDArray[np.int64]]  # [M] class index
    used: dict[int, int]  # the k really used: less than asked for where the bank is smaller


def knn(
    train_features: NDArray[np.float32],
    train_labels: NDArray[np.int64],
    test_features: NDArray[np.float32],
    test_labels: NDArray[np.int64],
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
) -> KnnResult:
    """Classify each test image by its k nearest train images in cosine similarity, weighted exp(similarity / T).

    Exact: similarities are float32 products of L2-normalised features. Equal similarities are ranked by the place in
    the bank, equal votes go to the class that comes first; similarities closer than float32 can tell (about 1e-7)
    count as the search finds them. The same input gives the same answer always.

    Args:
        train_features: the bank, [N, D].
        train_labels: [N], class indices from 0.
        test_features: [M, D].
        test_labels: [M].
        ks: neighbours; a k above N is capped at N (see ``KnnResult.used``).
        temperature: T; 0.07 in DINO's evaluation.

    Raises:
        UserError: an empty side, shapes that don't fit, a k or a temperature that is not positive.
        RunFailed: features that are not finite.

    >>> bank = np.array([[1, 0], [0.9, 0.1], [0, 1]], dtype=np.float32)
    >>> result = knn(bank, np.array([0, 0, 1]), bank[2:] + 0.1, np.array([1]), ks=(1, 5))
    >>> result.top1, result.used
    ({1: 100.0, 5: 100.0}, {1: 1, 5: 3})
    """
    _check(train_features, train_labels, test_features, test_labels)
    if temperature <= 0 or not ks or min(ks) < 1:
        raise UserError(f"k-NN: k and temperature must be positive; got k {list(ks)}, temperature {temperature}")
    used = {k: min(k, len(train_features)) for k in ks}
    similarity, neighbours = _search(train_features, test_features, max(used.values()))
    # The nearest counts 1 and the others less: dividing all votes by the same number moves nothing, and can't overflow.
    weights = np.exp((similarity.astype(np.float64) - similarity[:, :1]) / temperature)
    classes = int(train_labels.max()) + 1
    by_used = _vote(weights, train_labels[neighbours], sorted(set(used.values())), classes)
    predictions = {k: by_used[used[k]] for k in ks}
    top1 = {k: 100 * int(np.sum(predictions[k] == test_labels)) / len(test_labels) for k in ks}
    return KnnResult(top1, predictions, used)


def _search(
    bank: NDArray[np.float32], queries: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Similarity and index of the k nearest, [M, k] each, nearest first."""
    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(_normalised(bank))
    similarity, neighbours = index.search(_normalised(queries), k)
    order = np.lexsort((neighbours, -similarity))
    return np.take_along_axis(similarity, order, 1), np.take_along_axis(neighbours, order, 1)


def _vote(
    weights: NDArray[np.float64], labels: NDArray[np.int64], ks: list[int], classes: int
) -> dict[int, NDArray[np.int64]]:
    """The class with the most weight among the first k, for all k in one pass. weights, labels: [M, max k]."""
    found: dict[int, list[NDArray[np.int64]]] = {k: [] for k in ks}
    for start in range(0, len(labels), _QUERIES):
        weight, label = weights[start : start + _QUERIES], labels[start : start + _QUERIES]
        cell = np.arange(len(label))[:, None] * classes + label
        votes = np.zeros(len(label) * classes)
        done = 0
        for k in ks:
            votes += np.bincount(cell[:, done:k].ravel(), weight[:, done:k].ravel(), minlength=votes.size)
            found[k].append(votes.reshape(-1, classes).argmax(1))
            done = k
    return {k: np.concatenate(parts) for k, parts in found.items()}


def _normalised(features: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return np.ascontiguousarray(features / np.maximum(norms, 1e-12), dtype=np.float32)


def _check(
    train_features: NDArray[np.float32],
    train_labels: NDArray[np.int64],
    test_features: NDArray[np.float32],
    test_labels: NDArray[np.int64],
) -> None:
    for side, features, labels in (("train", train_features, train_labels), ("test", test_features, test_labels)):
        if features.ndim != 2 or not len(features) or len(features) != len(labels):
            raise UserError(
                f"k-NN: {side} features {features.shape} and labels {labels.shape} don't fit; expected [N, D] and [N]"
            )
        if not np.isfinite(features).all():
            raise RunFailed(f"k-NN: {side} features hold NaN or infinity; the weights are broken, score an earlier one")
    if train_features.shape[1] != test_features.shape[1]:
        raise UserError(
            f"k-NN: train features have {train_features.shape[1]} dimensions, test features {test_features.shape[1]}"
        )
