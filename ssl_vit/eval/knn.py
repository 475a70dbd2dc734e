"""Weighted k-nearest neighbours, as DINO scores features (arXiv 2104.14294): exact, in one search for every k."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from ssl_vit.device import kind
from ssl_vit.errors import RunFailed, UserError
from ssl_vit.eval.features import FeatureSet
from ssl_vit.eval.job import Job, Outcome
from ssl_vit.eval.kinds.knn import Knn

KS, TEMPERATURE, PLAIN = Knn().k, Knn().temperature[0], math.inf

_QUERIES = 1024  # voted on at once: bounds the vote table to _QUERIES x classes
_BANK = 32_768  # rows of the bank compared at once: bounds the copies that are normalised
_ASKED = 4096  # queries compared at once: bounds the similarities kept for them to _ASKED x k


@dataclass(frozen=True)
class KnnResult:
    """The result holds what k-NN found, by each k that was asked for."""

    top1: dict[int, float]  # percent of the test images
    predictions: dict[int, NDArray[np.int64]]  # [M] class index
    used: dict[int, int]  # the k really used: less than asked for where the bank is smaller


def score(job: Job, k: tuple[int, ...], temperature: tuple[float, ...]) -> Outcome:
    """The kind "knn" gives top-1 in percent by k at the first temperature; beside it, at each and by plain votes."""
    train, val = job.labelled()
    return score_features(job.features(train, "train"), job.features(val, "val"), k, temperature)


def score_features(
    bank: FeatureSet, val: FeatureSet, ks: tuple[int, ...] = KS, temperatures: tuple[float, ...] = (TEMPERATURE,)
) -> Outcome:
    """Score features that are there already; ``ssl-vit eval knn`` and a run's own k-NN are both made by this."""
    found = knn_sweep(bank.features, bank.labels, val.features, val.labels, ks, (*temperatures, PLAIN))
    first = found[temperatures[0]]
    return Outcome(
        scores=_named(first),
        settings={"k": {str(k): used for k, used in first.used.items()}, "temperature": temperatures[0]},
        more={"by_temperature": {_name(each): _named(result) for each, result in found.items()}},
        correct=first.predictions[ks[0]] == val.labels,
    )


def _named(result: KnnResult) -> dict[str, float]:
    return {str(k): value for k, value in result.top1.items()}


def _name(temperature: float) -> str:
    return "plain" if temperature == PLAIN else str(temperature)


def knn(
    train_features: NDArray[np.float32],
    train_labels: NDArray[np.int64],
    test_features: NDArray[np.float32],
    test_labels: NDArray[np.int64],
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
) -> KnnResult:
    """Classify each test image by its k nearest train images in cosine similarity, weighted exp(similarity / T).

    Exact: similarities are float32 products of L2-normalised features. Equal similarities are ranked by the place in
    the bank, equal votes go to the class that comes first; similarities closer than float32 can tell (about 1e-7)
    count as the search finds them. The same input gives the same answer always.

    Args:
        train_features: the bank, [N, D]; a memory-mapped one stays on the disk.
        train_labels: [N], class indices from 0.
        test_features: [M, D].
        test_labels: [M].
        ks: neighbours; a k above N is capped at N (see ``KnnResult.used``).
        temperature: T; 0.07 in DINO's evaluation; infinity is the plain vote, in which each neighbour counts one.

    Raises:
        UserError: an empty side, shapes that don't fit, a k or a temperature that is not positive.
        RunFailed: features that are not finite.

    >>> bank = np.array([[1, 0], [0.9, 0.1], [0, 1]], dtype=np.float32)
    >>> result = knn(bank, np.array([0, 0, 1]), bank[2:] + 0.1, np.array([1]), ks=(1, 5))
    >>> result.top1, result.used
    ({1: 100.0, 5: 100.0}, {1: 1, 5: 3})
    """
    return knn_sweep(train_features, train_labels, test_features, test_labels, ks, (temperature,))[temperature]


def knn_sweep(
    train_features: NDArray[np.float32],
    train_labels: NDArray[np.int64],
    test_features: NDArray[np.float32],
    test_labels: NDArray[np.int64],
    ks: Sequence[int] = KS,
    temperatures: Sequence[float] = (TEMPERATURE, PLAIN),
) -> dict[float, KnnResult]:
    """Classify as ``knn`` does, for several temperatures; the neighbours are searched for once."""
    _check(train_features, train_labels, test_features, test_labels)
    if not temperatures or not min(temperatures) > 0 or not ks or min(ks) < 1:
        got = f"k {list(ks)}, temperature {list(temperatures)}"
        raise UserError(f"k-NN: k and temperature must be positive; got {got}")
    used = {k: min(k, len(train_features)) for k in ks}
    similarity, neighbours = nearest_neighbours(train_features, test_features, max(used.values()))
    labels, classes = train_labels[neighbours], int(train_labels.max()) + 1
    del neighbours  # as large as the labels
    results = {}
    for temperature in temperatures:
        votes = _vote(similarity, labels, temperature, sorted(set(used.values())), classes)
        predictions = {k: votes[used[k]] for k in ks}
        top1 = {k: 100 * int(np.sum(predictions[k] == test_labels)) / len(test_labels) for k in ks}
        results[temperature] = KnnResult(top1, predictions, used)
    return results


def leave_one_out(
    features: NDArray[np.float32], labels: NDArray[np.int64], k: int, temperature: float = TEMPERATURE
) -> NDArray[np.int64]:
    """Classify each image [N] by its k nearest others among the same images, as ``knn`` does.

    Raises as ``knn``.

    >>> bank = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], dtype=np.float32)
    >>> leave_one_out(bank, np.array([0, 0, 1, 1]), 1)
    array([0, 0, 1, 1])
    """
    _check(features, labels, features, labels)
    k, rows = min(k, len(features) - 1), np.arange(len(features))[:, None]
    similarity, near = nearest_neighbours(features, features, k + 1)
    own = near == rows
    own[:, -1] |= ~own.any(1)  # where the image itself is not among them the last goes
    others = (similarity[~own].reshape(-1, k), labels[near[~own].reshape(-1, k)])
    return _vote(*others, temperature, [k], int(labels.max()) + 1)[k]


Search = Callable[[NDArray[np.float32], NDArray[np.float32], int], tuple[NDArray[np.float32], NDArray[np.int64]]]


def nearest_neighbours(
    bank: NDArray[np.float32], queries: NDArray[np.float32], k: int, search: Search | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Find the k nearest rows of the bank [N, D]: cosine similarity and index, [M, k] each, nearest first.

    Block by block, keeping the best k so far: no more than a block of the bank is copied, and the whole matrix of
    similarities never exists. Equal ones are ranked by their place in the bank. k: at most N.
    """
    search = search or (on_gpu if kind() == "cuda" else on_cpu)
    asked = [slice(first, first + _ASKED) for first in range(0, len(queries), _ASKED)]
    heaps = [faiss.ResultHeap(len(queries[rows]), k, keep_max=True) for rows in asked]
    for start in range(0, len(bank), _BANK):
        block = unit(bank[start : start + _BANK])
        for rows, heap in zip(asked, heaps, strict=True):
            similarity, index = search(unit(queries[rows]), block, min(k, len(block)))
            heap.add_result(similarity, index + start)
    best, place = np.concatenate([heap.D for heap in heaps]), np.concatenate([heap.I for heap in heaps])
    heaps.clear()
    for rows in asked:
        order = np.lexsort((place[rows], -best[rows]))
        best[rows], place[rows] = (np.take_along_axis(each[rows], order, 1) for each in (best, place))
    return best, place


def on_cpu(
    queries: NDArray[np.float32], bank: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """faiss finds the k largest products and their rows, [M, k] each, without an index that would copy the bank."""
    similarity, index = faiss.knn(queries, bank, k, metric=faiss.METRIC_INNER_PRODUCT)
    return similarity, index


def on_gpu(
    queries: NDArray[np.float32], bank: NDArray[np.float32], k: int, device: str = "cuda"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """torch finds the k largest products and their rows, [M, k] each, in float32 proper."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # TensorFloat-32 keeps three digits
    try:
        products = torch.from_numpy(queries).to(device) @ torch.from_numpy(bank).to(device).T
    finally:
        torch.set_float32_matmul_precision(precision)
    similarity, index = products.topk(k, dim=1)
    return similarity.cpu().numpy(), index.cpu().numpy()


def unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows [N, D] are brought to length one; the result is contiguous."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return np.ascontiguousarray(features / np.maximum(norms, 1e-12), dtype=np.float32)


def _vote(
    similarity: NDArray[np.float32], labels: NDArray[np.int64], temperature: float, ks: list[int], classes: int
) -> dict[int, NDArray[np.int64]]:
    """The class with the most votes among the first k, for all k in one pass. similarity, labels: [M, max k]."""
    found: dict[int, list[NDArray[np.int64]]] = {k: [] for k in ks}
    for start in range(0, len(labels), _QUERIES):
        near, label = similarity[start : start + _QUERIES].astype(np.float64), labels[start : start + _QUERIES]
        # The nearest counts 1 and the others less: dividing all votes by the same number can't overflow.
        weight = np.exp((near - near[:, :1]) / temperature)
        cell = np.arange(len(label))[:, None] * classes + label
        votes = np.zeros(len(label) * classes)
        done = 0
        for k in ks:
            votes += np.bincount(cell[:, done:k].ravel(), weight[:, done:k].ravel(), minlength=votes.size)
            found[k].append(votes.reshape(-1, classes).argmax(1))
            done = k
    return {k: np.concatenate(parts) for k, parts in found.items()}


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
        if not all(np.isfinite(features[start : start + _BANK]).all() for start in range(0, len(features), _BANK)):
            raise RunFailed(f"k-NN: {side} features hold NaN or infinity; the weights are broken, score an earlier one")
    if train_features.shape[1] != test_features.shape[1]:
        raise UserError(
            f"k-NN: train features have {train_features.shape[1]} dimensions, test features {test_features.shape[1]}"
        )
