"""k-NN against an independent one built on scikit-learn, and against results known by hand."""

from functools import partial

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from ssl_vit.errors import RunFailed, UserError
from ssl_vit.eval import knn as module
from ssl_vit.eval.knn import PLAIN, knn, knn_sweep, nearest_neighbours, on_gpu


def clusters(count, classes=12, dim=48, noise=2.5, seed=0):
    """Features like a trained backbone's: overlapping classes, a common direction, lengths that vary."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    labels = rng.integers(0, classes, count)
    features = centres[labels] + noise * rng.normal(size=(count, dim)) + 0.5
    return (features * rng.uniform(0.5, 20, size=(count, 1))).astype(np.float32), labels


def oracle(train, train_labels, test, k, temperature):
    """The same definition the long way: brute-force cosine distances in float64, a loop over images and neighbours."""
    search = NearestNeighbors(n_neighbors=min(k, len(train)), algorithm="brute", metric="cosine")
    distances, neighbours = search.fit(train.astype(np.float64)).kneighbors(test.astype(np.float64))
    predictions = []
    for row, near in zip(1 - distances, neighbours, strict=True):
        votes = {}
        for similarity, neighbour in zip(row, near, strict=True):
            label = train_labels[neighbour]
            votes[label] = votes.get(label, 0.0) + np.exp(similarity / temperature)
        predictions.append(min(votes, key=lambda label: (-votes[label], label)))
    return np.array(predictions)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_every_prediction_equals_scikit_learns(temperature):
    train, train_labels = clusters(1500, seed=1)
    test, test_labels = clusters(1200, seed=2)  # more than one block of votes
    result = knn(train, train_labels, test, test_labels, temperature=temperature)
    for k in (10, 20, 100, 200):
        expected = oracle(train, train_labels, test, k, temperature)
        np.testing.assert_array_equal(result.predictions[k], expected)
        assert result.top1[k] == pytest.approx(100 * np.mean(expected == test_labels))
    assert 40 < result.top1[20] < 95  # neither trivial nor chance (8.3)
    assert len({result.top1[k] for k in (10, 20, 100, 200)}) > 1


def test_near_ties_are_ranked_as_scikit_learn_ranks_them():
    """Neighbours 1e-5 apart in similarity: a hundred times what float32 rounds away."""
    angles = np.arccos(0.9 + 1e-5 * np.array([3, 2, 1, 0, -1]))
    bank = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    labels = np.array([2, 0, 1, 0, 1])
    query = np.array([[1.0, 0.0]], dtype=np.float32)
    result = knn(bank, labels, query, np.array([2]), ks=(1, 2, 3, 4, 5))
    for k in (1, 2, 3, 4, 5):
        np.testing.assert_array_equal(result.predictions[k], oracle(bank, labels, query, k, 0.07))
    # k = 2 and 3: one vote each and the nearest wins; from 4 on class 0 has two votes.
    assert [int(result.predictions[k][0]) for k in (1, 2, 3, 4, 5)] == [2, 2, 2, 0, 0]


def test_exact_ties_go_to_the_class_that_comes_first():
    bank = np.array([[1, 0], [1, 0], [1, 0], [1, 0]], dtype=np.float32)
    result = knn(bank, np.array([3, 1, 1, 3]), bank[:1], np.array([1]), ks=(4,))
    assert result.predictions[4].tolist() == [1]


def test_weights_decide_over_counts():
    """One neighbour at similarity 1 outweighs nine at 0.8: exp(0.2 / 0.07) = 17.4; ten at T = 1 do not."""
    far = np.array([[0.8, 0.6]], dtype=np.float32)
    bank = np.concatenate([np.array([[1, 0]], dtype=np.float32), np.repeat(far, 9, 0)])
    labels = np.array([0] + [1] * 9)
    query = np.array([[5.0, 0.0]], dtype=np.float32)
    assert knn(bank, labels, query, np.array([0]), ks=(10,)).predictions[10].tolist() == [0]
    assert knn(bank, labels, query, np.array([0]), ks=(10,), temperature=1.0).predictions[10].tolist() == [1]


def test_k_above_the_bank_is_capped_and_says_so():
    train, train_labels = clusters(30)
    test, test_labels = clusters(50, seed=3)
    result = knn(train, train_labels, test, test_labels, ks=(20, 100))
    assert result.used == {20: 20, 100: 30}
    np.testing.assert_array_equal(result.predictions[100], oracle(train, train_labels, test, 100, 0.07))


def test_lengths_do_not_matter_and_a_small_temperature_does_not_overflow():
    train, train_labels = clusters(200)
    test, test_labels = clusters(100, seed=3)
    plain = knn(train, train_labels, test, test_labels, ks=(5,))
    scaled = knn(train * 512, train_labels, test / 1024, test_labels, ks=(5,))
    np.testing.assert_array_equal(plain.predictions[5], scaled.predictions[5])
    nearest = knn(train, train_labels, test, test_labels, ks=(5,), temperature=1e-4)
    np.testing.assert_array_equal(nearest.predictions[5], oracle(train, train_labels, test, 1, 0.07))


def test_mistakes_are_named():
    train, labels = clusters(20)
    with pytest.raises(UserError, match=r"test features \(0, 48\)"):
        knn(train, labels, train[:0], labels[:0])
    with pytest.raises(UserError, match="48 dimensions, test features 40"):
        knn(train, labels, train[:, :40], labels)
    with pytest.raises(UserError, match="must be positive"):
        knn(train, labels, train, labels, ks=(0,))
    broken = train.copy()
    broken[3, 4] = np.nan
    with pytest.raises(RunFailed, match="train features hold NaN"):
        knn(broken, labels, train, labels)


def test_all_temperatures_in_one_pass_and_the_plain_vote(monkeypatch):
    """Searched once; each temperature as if alone; the plain vote is scikit-learn's uniform one."""
    train, train_labels = clusters(800, seed=1)
    test, test_labels = clusters(300, seed=2)
    calls = []
    monkeypatch.setattr(module, "nearest_neighbours", lambda *args: calls.append(1) or nearest_neighbours(*args))
    found = knn_sweep(train, train_labels, test, test_labels, (5, 15), (0.07, 0.5, PLAIN))
    assert len(calls) == 1
    for temperature in (0.07, 0.5):
        expected = oracle(train, train_labels, test, 15, temperature)
        np.testing.assert_array_equal(found[temperature].predictions[15], expected)
    plain = KNeighborsClassifier(15, algorithm="brute", metric="cosine").fit(train.astype(float), train_labels)
    np.testing.assert_array_equal(found[PLAIN].predictions[15], plain.predict(test.astype(float)))


@pytest.mark.parametrize("search", [module.on_cpu, partial(on_gpu, device="cpu")])
def test_blocks_change_nothing(monkeypatch, search):
    """faiss and torch, in blocks smaller than k, against scikit-learn's search over everything."""
    monkeypatch.setattr(module, "_BANK", 70)
    monkeypatch.setattr(module, "_ASKED", 50)
    train, test = clusters(500, seed=1)[0], clusters(120, seed=2)[0]
    similarity, neighbours = nearest_neighbours(train, test, 100, search)
    exact = NearestNeighbors(n_neighbors=100, algorithm="brute", metric="cosine").fit(train.astype(float))
    distances, expected = exact.kneighbors(test.astype(float))
    np.testing.assert_allclose(similarity, 1 - distances, atol=1e-6)
    assert (neighbours == expected).mean() > 0.999  # two that are 1e-7 apart may change places
