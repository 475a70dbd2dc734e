"""Logistic regression and few-shot against scikit-learn's."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression

from ssl_vit.eval.intervals import half_interval
from ssl_vit.eval.linear import Scaling
from ssl_vit.eval.logistic import fit_logistic, optimum
from tests.eval.test_linear import clusters


@pytest.mark.parametrize("strength", [1e-3, 1.0, 100.0])
def test_the_optimum_is_scikit_learns(strength):
    """The same objective within 1e-9 of its value, the same probabilities within 1e-4."""
    features, labels = clusters(600, 1.5, 1)
    scaled = Scaling.of(features)(features).double()
    weights = optimum(scaled, torch.from_numpy(labels), strength, 8)
    x = scaled[:, :-1].numpy()
    theirs = LogisticRegression(C=strength, tol=1e-10, max_iter=20_000).fit(x, labels)

    def objective(w, bias):
        logits = x @ w + bias
        logits = logits - logits.max(1, keepdims=True)
        loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(x)), labels]
        return strength * loss.sum() + 0.5 * np.square(w).sum()

    ours = objective(weights[:-1].numpy(), weights[-1].numpy())
    assert ours == pytest.approx(objective(theirs.coef_.T, theirs.intercept_), rel=1e-9)
    probabilities = (scaled @ weights).softmax(1).numpy()
    np.testing.assert_allclose(probabilities, theirs.predict_proba(x), atol=1e-4)


def test_the_best_strength_of_the_held_out_part_is_taken():
    features, labels = clusters(300, 2.0, 1)
    probe = fit_logistic(features, labels, strengths=(1e-4, 1e-2, 1.0))
    assert probe.held_out[probe.rate] == max(probe.held_out.values())
    assert len(set(probe.held_out.values())) > 1


@pytest.mark.parametrize("count", [2, 5, 10, 11, 40])
def test_the_interval_is_students(count):
    values = np.random.default_rng(count).normal(70, 2, count).tolist()
    low, high = stats.t.interval(0.95, count - 1, np.mean(values), stats.sem(values))
    assert half_interval(values) == pytest.approx((high - low) / 2, rel=2e-3)
