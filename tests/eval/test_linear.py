"""The linear classifier against scikit-learn's, and the choice of its learning rate."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ssl_vit.errors import UserError
from ssl_vit.eval.linear import fit_linear, hold_out


def clusters(count, noise, seed, classes=8, dim=24):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(classes, dim))
    labels = rng.integers(0, classes, count)
    return (centres[labels] + noise * rng.normal(size=(count, dim))).astype(np.float32), labels


def linear(train, train_labels, test, test_labels, **options):
    """The probe, with what it predicts and how much of it is right."""
    probe = fit_linear(train, train_labels, **options)
    predictions = probe.predict(test)
    top1 = 100 * np.mean(predictions == test_labels)
    return SimpleNamespace(top1=top1, rate=probe.rate, held_out=probe.held_out, predictions=predictions)


def scikit_learn(train, train_labels, test, test_labels):
    scaler = StandardScaler().fit(train)
    model = LogisticRegression(max_iter=2000).fit(scaler.transform(train), train_labels)
    return 100 * model.score(scaler.transform(test), test_labels)


@pytest.mark.parametrize(("noise", "tolerance"), [(0.3, 0.0), (1.0, 1.0), (2.0, 1.5)])
def test_accuracy_equals_scikit_learns(noise, tolerance):
    """Separable clusters: both perfect. Overlapping ones: within 1 (1.5) point of 2,000 test images."""
    train, test = clusters(2000, noise, 1), clusters(2000, noise, 2)
    expected = scikit_learn(*train, *test)
    assert expected > 60
    assert linear(*train, *test, epochs=30).top1 == pytest.approx(expected, abs=tolerance)


def test_features_of_any_scale_and_constant_ones_score_the_same():
    train, test = clusters(600, 1.0, 1), clusters(600, 1.0, 2)
    plain = linear(*train, *test, epochs=10).top1
    shape = np.concatenate([np.full((600, 1), 0.1), 1e-4 * train[0] + 5], 1).astype(np.float32)
    shaped = np.concatenate([np.full((600, 1), 0.1), 1e-4 * test[0] + 5], 1).astype(np.float32)
    assert linear(shape, train[1], shaped, test[1], epochs=10).top1 == pytest.approx(plain, abs=1.0)


def test_each_rate_is_trained_as_if_alone():
    train, test = clusters(500, 1.5, 1), clusters(100, 1.5, 2)
    rates = (1e-4, 1e-2, 1.0, 100.0)
    together = linear(*train, *test, rates=rates, epochs=5)
    for rate in rates:
        assert linear(*train, *test, rates=(rate,), epochs=5).held_out[rate] == together.held_out[rate]
    assert len(set(together.held_out.values())) > 1


def test_products_in_bfloat16_score_as_float32_does():
    """Within half a point of 2,000 images for every rate that converges."""
    train, test = clusters(2000, 1.5, 1), clusters(2000, 1.5, 2)
    for rate in (0.01, 0.1, 1.0):
        exact, rough = (
            linear(*train, *test, rates=(rate,), epochs=10, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
        )
        assert rough.top1 == pytest.approx(exact.top1, abs=0.5)


def test_equals_torchs_own_sgd():
    """torch.optim.SGD and cross_entropy on the same batches: the same predictions."""
    train, train_labels = clusters(300, 1.5, 1)
    test, test_labels = clusters(400, 1.5, 2)
    ours = linear(train, train_labels, test, test_labels, rates=(0.05,), epochs=3, batch_size=64, seed=4)
    mean, deviation = train.mean(0), train.std(0)
    x, y = torch.from_numpy((train - mean) / deviation), torch.from_numpy(train_labels)
    model = torch.nn.Linear(24, 8)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=15)
    generator = torch.Generator().manual_seed(4)
    for _ in range(3):
        for batch in torch.randperm(300, generator=generator).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    expected = model(torch.from_numpy((test - mean) / deviation)).argmax(1).numpy()
    np.testing.assert_array_equal(ours.predictions, expected)


def test_the_best_rate_of_the_held_out_part_is_taken():
    train, test = clusters(400, 1.0, 1), clusters(200, 1.0, 2)
    honest = linear(*train, *test, epochs=3)
    assert honest.held_out[honest.rate] == max(honest.held_out.values())


def test_the_held_out_part_is_stratified_and_seeded():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [100, 50, 30, 3, 1]))
    fit, held_out = hold_out(labels, seed=1)
    assert sorted([*fit, *held_out]) == list(range(184))
    assert np.bincount(labels[held_out], minlength=5).tolist() == [10, 5, 3, 1, 0]
    np.testing.assert_array_equal(held_out, hold_out(labels, seed=1)[1])
    assert set(held_out) != set(hold_out(labels, seed=2)[1])
    with pytest.raises(UserError, match="single training image"):
        hold_out(np.arange(4), seed=0)
