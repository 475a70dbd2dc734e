"""Crops against torchvision's distribution and Pillow's resampling."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp, kstest
from torchvision.transforms import RandomResizedCrop

from ssl_vit.data.crops import Box, draw_colour, make_views, random_box, resize, sample_rng, wanted_side
from ssl_vit.data.plan import View, ViewPlan
from tests.data.photo import photo


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(375, 500, (0.4, 1.0)), (96, 64, (0.05, 0.4)), (30, 90, (0.8, 1.0))]
)
def test_boxes_are_drawn_as_torchvision_draws_them(height, width, scale):
    view, rng = View("v", 1, 32, scale=scale), np.random.default_rng(0)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    ours = np.array([random_box(height, width, view, rng.random(22)) for _ in range(3000)])
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(3000)])
    for name, pick in {
        "area": lambda b: b[:, 2] * b[:, 3],
        "ratio": lambda b: b[:, 3] / b[:, 2],
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
    }.items():
        assert ks_2samp(pick(ours), pick(theirs)).pvalue > 1e-3, name


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2000, 1), (1, 2000), (10, 300), (300, 10)])
def test_where_no_box_fits_the_central_one_is_torchvisions(height, width):
    view = View("v", 1, 32, scale=(1.0, 1.0))
    expected = RandomResizedCrop.get_params(torch.empty(3, height, width), [1.0, 1.0], [3 / 4, 4 / 3])
    assert random_box(height, width, view, np.full(22, 0.3)) == expected


def test_boxes_reach_every_border():
    view, rng = View("v", 1, 8, scale=(0.5, 0.9)), np.random.default_rng(0)
    boxes = [random_box(9, 9, view, rng.random(22)) for _ in range(500)]
    assert min(b.top for b in boxes) == 0
    assert max(b.top + b.height for b in boxes) == 9
    assert max(b.left + b.width for b in boxes) == 9


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(96, 96), (33, 57), (300, 300)])
def test_resize_is_pillows(mode, size):
    image, box = photo(150, 200), Box(20, 30, 110, 120)
    crop = Image.fromarray(image[20:130, 30:150])
    expected = np.asarray(crop.resize(size[::-1], getattr(Image.Resampling, mode.upper())), dtype=float)
    actual = resize(image, box, size, mode).permute(1, 2, 0).numpy()
    assert np.abs(actual - expected).mean() < 0.1
    assert np.abs(actual - expected).max() <= 2


def test_resize_of_the_smallest_images():
    for shape in [(1, 1), (2000, 1), (1, 7)]:
        image = np.full((*shape, 3), (10, 20, 30), dtype=np.uint8)
        out = resize(image, Box(0, 0, *shape), (16, 16))
        assert (out == torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1)).all()


def test_flip_mirrors_the_same_crop():
    image = photo(60, 70)
    plain, mirrored = (ViewPlan((View("v", 5, 24, scale=(0.2, 0.8), flip_p=p),)) for p in (0.0, 1.0))
    (a,), _ = make_views(image, plain, sample_rng(1, 2, 3))
    (b,), _ = make_views(image, mirrored, sample_rng(1, 2, 3))
    assert torch.equal(a, b.flip(-1))
    assert not torch.equal(a, b)


def test_a_crop_shows_its_box():
    image = photo(60, 70)
    (pixels,), _ = make_views(image, ViewPlan((View("v", 2, 24, scale=(0.2, 0.8)),)), sample_rng(0, 0, 0))
    uniform = sample_rng(0, 0, 0).random((2, 33))
    box = random_box(60, 70, View("v", 2, 24, scale=(0.2, 0.8)), uniform[1, :22])
    crop = Image.fromarray(image).crop((box.left, box.top, box.left + box.width, box.top + box.height))
    expected = np.asarray(crop.resize((24, 24), Image.Resampling.BICUBIC), dtype=float)
    assert np.abs(pixels[1].permute(1, 2, 0).numpy() - expected).mean() < 0.2


def test_colours_are_drawn_as_the_view_says():
    view = View(
        "v",
        1,
        8,
        jitter=(0.4, 0.3, 1.5, 0.1),
        jitter_p=0.8,
        gray_p=0.2,
        blur_p=0.5,
        blur_sigma=(0.1, 2.0),
        solarize_p=0.3,
    )
    rng = np.random.default_rng(0)
    rows = np.array([draw_colour(view, rng.random(10).tolist()) for _ in range(20_000)])
    jittered = rows[rows[:, 0] != 1]
    assert abs(len(jittered) / len(rows) - 0.8) < 0.015
    assert (rows[rows[:, 0] == 1, 1:5] == (1, 1, 0, 0)).all()
    for column, (low, high) in enumerate([(0.6, 1.4), (0.7, 1.3), (0.0, 2.5), (-0.1, 0.1)]):
        assert kstest(jittered[:, column], "uniform", args=(low, high - low)).pvalue > 1e-3
    assert np.abs(np.bincount(jittered[:, 4].astype(int), minlength=24) / len(jittered) - 1 / 24).max() < 0.008
    assert abs(rows[:, 5].mean() - 0.2) < 0.015
    blurred = rows[rows[:, 6] > 0, 6]
    assert abs(len(blurred) / len(rows) - 0.5) < 0.015
    assert kstest(blurred, "uniform", args=(0.1, 1.9)).pvalue > 1e-3
    assert abs(rows[:, 7].mean() - 0.3) < 0.015
    assert np.abs(np.corrcoef(rows[:, [0, 5, 6, 7]].T) - np.eye(4)).max() < 0.03


def test_generators_differ_in_every_coordinate_and_repeat():
    keys = [(s, e, i, t) for s in (0, 1, -1) for e in (0, 1) for i in (0, 1, 2**40) for t in (0, 1)]
    first = [tuple(sample_rng(*key).random(4)) for key in keys]
    assert len(set(first)) == len(keys)
    assert first == [tuple(sample_rng(*key).random(4)) for key in keys]


def test_neighbouring_images_are_not_correlated():
    draws = np.array([sample_rng(0, 0, i).random(40) for i in range(2000)])
    assert kstest(draws.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]) < 0.015


def test_wanted_side_is_that_of_the_smallest_box():
    plan = ViewPlan((View("g", 2, 224, scale=(0.4, 1.0)), View("l", 8, 96, scale=(0.05, 0.4))))
    assert wanted_side(plan) == math.ceil(96 / math.sqrt(0.05 * 0.75)) == 496
