"""Retrieval and clustering against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import (
    adjusted_rand_score,
    average_precision_score,
    normalized_mutual_info_score,
)

from ssl_vit.eval.clustering import ari, k_means, nmi
from ssl_vit.eval.retrieval import retrieve
from tests.eval.test_knn import clusters


def test_retrieval_is_scikit_learns():
    bank, labels = clusters(300, classes=5, seed=1)
    queries, wanted = clusters(280, classes=5, seed=2)  # more than one block
    found = retrieve(bank, labels, queries, wanted)
    one = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    similarity = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ one.T
    expected = [average_precision_score(labels == label, row) for label, row in zip(wanted, similarity, strict=True)]
    assert found["mAP"] == pytest.approx(100 * np.mean(expected), abs=1e-6)
    first = labels[similarity.argmax(1)] == wanted
    assert found["recall@1"] == pytest.approx(100 * first.mean())
    assert found["recall@1"] < found["recall@10"] <= 100


def test_agreement_is_scikit_learns():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 500)
    for other in (rng.integers(0, 9, 500), np.where(rng.random(500) < 0.7, labels, 7), np.zeros(500, int)):
        assert nmi(labels, other) == pytest.approx(normalized_mutual_info_score(labels, other), abs=1e-9)
        assert ari(labels, other) == pytest.approx(adjusted_rand_score(labels, other), abs=1e-9)


def test_k_means_finds_clusters_that_are_there():
    features, labels = clusters(400, classes=4, noise=0.2, seed=3)
    assert ari(labels, k_means(features, 4, seed=0)) == pytest.approx(1.0)
