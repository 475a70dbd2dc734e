"""Corruptions against the package imagecorruptions; see tests/golden/make_corruptions.py."""

from pathlib import Path

import numpy as np
import pytest

from ssl_vit.eval.corruptions import CORRUPTIONS, corrupt
from ssl_vit.eval.corruptions.weather import crystals

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "corruptions.npz")
PICTURE = GOLDEN["picture"]


class Legacy(np.random.RandomState):
    """numpy's old generator, which the package draws from, under the new one's name."""

    integers = np.random.RandomState.randint


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "frost"])
def test_every_pixel_within_one_of_the_package(name, severity):
    """One of 255: both cut off decimals, and sums of floats differ in the last digit. Seldom: 10 % of the values."""
    rng = np.random.default_rng(0) if name == "impulse_noise" else Legacy(0)
    found, expected = corrupt(PICTURE, name, severity, rng), GOLDEN[f"{name}_{severity}"]
    assert expected.std() > 0
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.1


def test_all_fifteen_of_the_paper_are_there():
    package = {name.rpartition("_")[0] for name in GOLDEN.files if name != "picture"} | {"frost"}
    assert set(CORRUPTIONS) == package
    assert len(CORRUPTIONS) == 15


@pytest.mark.parametrize("severity", range(1, 6))
def test_frost_lies_over_the_image_as_strongly_as_in_the_paper(severity):
    """Black shows the ice alone: five photographs have means of 113 to 204 and deviate by 29 (see ``crystals``)."""
    ice = (0.4, 0.6, 0.7, 0.7, 0.75)[severity - 1]
    found = [corrupt(np.zeros((64, 64, 3), np.uint8), "frost", severity, np.random.default_rng(i)) for i in range(12)]
    assert all(113 * ice - 2 < each.mean() < 204 * ice + 2 for each in found)
    assert np.mean([each.std() for each in found]) == pytest.approx(29 * ice, rel=0.1)
    grey = corrupt(np.full((64, 64, 3), 60, np.uint8), "frost", severity, np.random.default_rng(0)).astype(float)
    kept = (1, 0.8, 0.7, 0.65, 0.6)[severity - 1]
    assert np.median(grey - found[0]) == pytest.approx(60 * kept, abs=1)


def test_ice_is_another_each_time_and_the_same_for_a_seed():
    first, again, other = (crystals(48, 40, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 10


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_any_size_from_32_on_and_the_input_stays(name):
    image = np.random.default_rng(0).integers(0, 256, (32, 57, 3)).astype(np.uint8)
    before = image.copy()
    found = corrupt(image, name, 5, np.random.default_rng(0))
    np.testing.assert_array_equal(image, before)
    assert (found.shape, found.dtype) == (image.shape, np.uint8)
    assert (found != image).any()
