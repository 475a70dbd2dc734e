"""Selective search on scenes whose objects are known."""

import numpy as np
import torch
from PIL import Image, ImageDraw
from torchvision.ops import box_iou

from ssl_vit.proposals import create_prior
from ssl_vit.proposals.selective_search import cell_features, lab

OBJECTS = ((20, 30, 60, 90), (100, 100, 180, 140), (190, 20, 230, 70))  # of 256 x 160 pixels


def scene():
    """Two plain figures and one of two colours, over noise."""
    image = Image.new("RGB", (256, 160), (90, 140, 90))
    draw = ImageDraw.Draw(image)
    draw.rectangle((20, 30, 59, 89), (200, 40, 40))
    draw.ellipse((100, 100, 179, 139), (40, 60, 200))
    draw.rectangle((190, 20, 229, 44), (230, 230, 230))
    draw.rectangle((190, 45, 229, 69), (20, 20, 20))
    noise = np.random.default_rng(0).normal(0, 6, (160, 256, 3))
    return np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)


def best_overlaps(boxes, size=(256, 160)):
    scale = torch.tensor([*size, *size])
    return box_iou(torch.tensor(OBJECTS).float(), torch.from_numpy(boxes) * scale).max(1).values


def test_the_objects_are_among_the_first_boxes():
    boxes = create_prior("selective_search", count=6)(scene())
    assert boxes.dtype == np.float32
    assert (best_overlaps(boxes) > 0.8).all(), best_overlaps(boxes)


def test_random_boxes_do_not_find_them():
    assert (best_overlaps(create_prior("random", count=6)(scene())) > 0.8).sum() == 0


def test_boxes_are_distinct_and_the_same_every_time():
    prior = create_prior("selective_search", count=30)
    boxes = prior(scene())
    overlap = box_iou(*[torch.from_numpy(boxes)] * 2).fill_diagonal_(0)
    assert overlap.max() <= 0.7
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    np.testing.assert_array_equal(prior(scene(), 17), boxes)


def test_a_plain_and_a_tiny_image_are_answered():
    prior = create_prior("selective_search")
    for image in (np.full((200, 300, 3), 255, np.uint8), np.zeros((1, 1, 3), np.uint8), scene()[:, :2]):
        boxes = prior(image)
        assert boxes.shape[1:] == (4,)
        assert len(boxes) <= 30


def test_colours_are_those_of_the_cie():
    """Values of the sRGB primaries under D65, as Lindbloom's calculator and scikit-image print them."""
    colours = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    expected = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]]
    np.testing.assert_allclose(lab(colours), expected, atol=0.03)


def test_texture_is_the_density_of_edges_and_plain_areas_have_none():
    cells = np.full((20, 30, 3), 128, np.uint8)
    cells[:, 20:] = np.where(np.arange(10) // 2 % 2, 255, 0)[None, :, None]  # stripes two cells wide
    described = cell_features(cells)
    assert described.shape == (20, 30, 4)
    assert described[:, :16, 3].max() == 0
    # Half the difference of both sides, 50 of 100 in lightness, at every cell; twice that is the weight.
    np.testing.assert_allclose(described[:, 23:27, 3], 100, rtol=1e-3)
