"""What holds of every prior, and random boxes against their distribution."""

import numpy as np
import pytest

from ssl_vit.errors import UserError
from ssl_vit.proposals import create_prior


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("selective", {}, "unknown region prior 'selective'"),
        ("random", {"sed": 3}, "the region prior 'random' has no setting 'sed'; did you mean seed?"),
        ("random", {"temperature": 3}, "known: count, seed"),
        ("random", {"count": 0}, "asked for 0 boxes"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(name, settings, message):
    with pytest.raises(UserError, match=message):
        create_prior(name, **settings)


def test_random_boxes_have_uniform_sides_and_lie_uniformly():
    prior = create_prior("random", count=4000, seed=5)
    boxes = prior(np.zeros((2, 2, 3), np.uint8), 9)
    size = boxes[:, 2:] - boxes[:, :2]
    assert boxes.min() >= 0
    assert boxes.max() <= 1 + 1e-6
    quantiles = np.quantile(size, [0, 0.25, 0.5, 0.75, 1], axis=0)
    np.testing.assert_allclose(quantiles, np.linspace(0.05, 1, 5)[:, None].repeat(2, 1), atol=0.03)
    place = boxes[:, :2] / (1 - size)
    np.testing.assert_allclose(np.quantile(place, [0.25, 0.5, 0.75], axis=0)[:, 0], [0.25, 0.5, 0.75], atol=0.03)
    np.testing.assert_array_equal(
        create_prior("random", count=10, seed=5)(np.zeros((9, 9, 3), np.uint8), 9), boxes[:10]
    )
    assert not np.array_equal(prior(np.zeros((2, 2, 3), np.uint8), 10), boxes)
