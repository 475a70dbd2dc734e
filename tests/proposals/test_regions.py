"""Regions that grow together, against plain loops over sets of cells and on a picture whose costs are known."""

import itertools

import numpy as np
import pytest

from ssl_vit.proposals.regions import grow


def slowly(features):
    """(box, size, level) of every region that vanishes: Ward's cost times the box's area over the union's."""
    height, width, _ = features.shape
    regions = [frozenset([(row, column)]) for row in range(height) for column in range(width)]
    level = dict.fromkeys(regions, 0.0)
    vanished = []
    while len(regions) > 1:
        costs = {frozenset(pair): cost(features, *pair) for pair in itertools.combinations(regions, 2) if touch(*pair)}
        best = {one: min((pair for pair in costs if one in pair), key=costs.get) for one in regions}
        for pair in {pair for pair in best.values() if all(best[one] == pair for one in pair)}:
            one, other = pair
            at = max(costs[pair], level[one], level[other])
            vanished += [(box(one), len(one), at), (box(other), len(other), at)]
            regions = [region for region in regions if region not in pair] + [one | other]
            level[one | other] = at
    return vanished


def touch(one, other):
    return any(abs(a - c) + abs(b - d) == 1 for a, b in one for c, d in other)


def cost(features, one, other):
    means = [np.mean([features[cell] for cell in region], 0) for region in (one, other)]
    left, top, right, bottom = box(one | other)
    size = len(one) + len(other)
    ward = len(one) * len(other) / size * ((means[0] - means[1]) ** 2).sum()
    return ward * (right - left) * (bottom - top) / size


def box(region):
    rows, columns = zip(*region, strict=True)
    return min(columns), min(rows), max(columns) + 1, max(rows) + 1


@pytest.mark.parametrize(("height", "width", "channels"), [(1, 7, 1), (6, 5, 3), (4, 9, 2)])
def test_regions_are_those_of_plain_loops(height, width, channels):
    features = np.random.default_rng(height).normal(size=(height, width, channels)).astype(np.float32)
    grown, expected = grow(features), sorted(slowly(features.astype(np.float64)))
    assert len(grown.sizes) == 2 * (height * width - 1)
    found = sorted(zip(map(tuple, grown.boxes.astype(int).tolist()), grown.sizes, grown.levels, strict=True))
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    np.testing.assert_allclose([row[2] for row in found], [row[2] for row in expected], rtol=1e-4)


def test_the_last_to_vanish_is_the_figure_on_the_ground():
    """A rectangle of 6 x 4 cells, 10 from its ground of 20 x 16: Ward's cost 24 * 296 / 320 * 100, box full."""
    features = np.zeros((16, 20, 1), np.float32)
    features[5:9, 3:9] = 10
    grown = grow(features)
    last = np.argsort(grown.levels)[-2:]
    figure = last[np.argmin(grown.sizes[last])]
    assert grown.boxes[figure].tolist() == [3, 5, 9, 9]
    assert grown.sizes[last].sum() == 320
    np.testing.assert_allclose(grown.levels[last], 24 * 296 / 320 * 100)
    assert np.sort(grown.levels)[-3] == 0


def test_a_plain_image_grows_in_few_rounds(monkeypatch):
    """Equal costs everywhere: were they taken in order, a row of 64 cells alone would take 63 rounds."""
    from ssl_vit.proposals import regions

    rounds = []
    each = regions._each_others_best
    monkeypatch.setattr(regions, "_each_others_best", lambda *given: rounds.append(1) or each(*given))
    assert len(grow(np.zeros((64, 64, 1), np.float32)).sizes) == 2 * 4095
    assert len(rounds) < 40
