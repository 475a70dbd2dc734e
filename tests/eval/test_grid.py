"""The grid over layers and pooling: what is where, and that the columns with the signal are chosen."""

import numpy as np
import pytest

from ssl_vit.eval.grid import candidates, fit_grid
from ssl_vit.eval.linear import fit_linear
from ssl_vit.eval.readout import LayerColumns
from tests.eval.test_linear import clusters

PARTS = [
    LayerColumns(8, "class", 0, 24),
    LayerColumns(8, "mean", 24, 48),
    LayerColumns(9, "class", 48, 72),
    LayerColumns(9, "mean", 72, 96),
]


def test_every_depth_has_each_pooling_and_both():
    found = [(choice.layers, choice.pooling, choice.columns.tolist()) for choice in candidates(PARTS, (1, 4))]
    last, all_of_it = list(range(48, 96)), list(range(96))
    assert found == [
        (1, "class", last[:24]),
        (1, "mean", last[24:]),
        (1, "class+mean", last),
        (2, "class", all_of_it[:24] + all_of_it[48:72]),
        (2, "mean", all_of_it[24:48] + all_of_it[72:]),
        (2, "class+mean", all_of_it),
    ]


@pytest.mark.parametrize("place", [2, 3])
def test_the_part_that_says_something_is_chosen_and_trained_as_alone(place):
    signal, labels = clusters(600, 1.2, 1)
    test, test_labels = clusters(400, 1.2, 2)
    noise = np.random.default_rng(0).normal(size=(1000, 96)).astype(np.float32)
    columns = slice(24 * place, 24 * place + 24)
    noise[:600, columns], noise[600:, columns] = signal, test
    choices = candidates(PARTS, (1, 2))
    best, probe, tried = fit_grid(noise[:600], labels, choices, seed=0)
    reached = {name: max(rates.values()) for name, rates in tried.items()}
    for choice in choices:
        informed = 24 * place in choice.columns
        assert (reached[f"last {choice.layers}, {choice.pooling}"] > 40) == informed
    assert reached[f"last {best.layers}, {best.pooling}"] == max(reached.values())
    alone = fit_linear(noise[:600, best.columns], labels)
    assert tried[f"last {best.layers}, {best.pooling}"] == {str(rate): top1 for rate, top1 in alone.held_out.items()}
    predictions = probe.predict(noise[600:, best.columns])
    np.testing.assert_array_equal(predictions, alone.predict(noise[600:, best.columns]))
    assert np.mean(predictions == test_labels) > 0.4
