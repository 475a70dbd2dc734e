"""Colour operations against torchvision, SciPy and Pillow."""

from functools import partial

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image, ImageFilter, ImageOps
from scipy.ndimage import gaussian_filter

from ssl_vit.data import augment as ours
from ssl_vit.data import kernels
from ssl_vit.data.augment import blur, normalise
from ssl_vit.data.crops import draw_colour
from ssl_vit.data.jitter import BASES, ORDERS, blend, hue
from ssl_vit.data.params import UNCHANGED, Column
from ssl_vit.data.plan import View
from tests.data.photo import photo

ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
TORCHVISION = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)


@pytest.fixture(params=["torch", "numba"])
def augment(request):
    """As plain torch and as numba's kernels compute it."""
    return partial(ours.augment, kernels=request.param == "numba")


def crops(count: int, size: int = 24) -> torch.Tensor:
    """uint8 [count, 3, size, size]: photographs, and pure noise as every second."""
    rng = np.random.default_rng(1)
    pictures = [
        photo(size, size, i) if i % 2 else rng.integers(0, 256, (size, size, 3), np.uint8) for i in range(count)
    ]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def row(**values: float) -> list[float]:
    return [values.get(column.name.lower(), default) for column, default in zip(Column, UNCHANGED, strict=False)]


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("brightness", (0.0, 0.3, 1.0, 1.7)),
        ("contrast", (0.0, 0.6, 1.0, 1.4)),
        ("saturation", (0.0, 0.2, 1.0, 1.8)),
        ("hue", (-0.5, -0.1, 0.03, 0.5)),
    ],
)
def test_each_jitter_operation_is_torchvisions(name, factors):
    x, values = crops(4).float() / 255, torch.tensor(factors)
    expected = torch.stack([getattr(tv, f"adjust_{name}")(image, f) for image, f in zip(x, factors, strict=True)])
    number = ("brightness", "contrast", "saturation", "hue").index(name)
    actual = hue(x, values) if name == "hue" else blend(x, values, BASES[number].expand(4, 2))
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=0)


def test_blends_of_several_kinds_at_once():
    x, factors = crops(3).float() / 255, torch.tensor([0.5, 1.6, 0.3])
    expected = torch.stack([f(i, v) for f, i, v in zip(TORCHVISION, x, factors.tolist(), strict=False)])
    torch.testing.assert_close(blend(x, factors, BASES), expected, atol=2e-6, rtol=0)


def test_hue_leaves_grey_grey():
    x = torch.linspace(0, 1, 16).view(1, 1, 4, 4).expand(1, 3, 4, 4)
    torch.testing.assert_close(hue(x, torch.tensor([0.3]).view(1, 1, 1, 1)), x.contiguous(), atol=0, rtol=0)


def test_jitter_runs_in_each_crops_own_order(augment):
    images = crops(len(ORDERS))
    factors = (1.35, 0.65, 1.2, 0.08)
    params = torch.tensor([[*factors, float(order), 0, 0, 0] for order in range(len(ORDERS))])
    expected = []
    for image, order in zip(images.float() / 255, ORDERS, strict=True):
        for operation in order:
            image = TORCHVISION[operation](image, factors[operation])
        expected.append(image)
    actual = augment(images, params, ZERO, ONE)
    torch.testing.assert_close(actual, torch.stack(expected), atol=5e-6, rtol=0)


def test_whole_chain_against_torchvision_crop_by_crop(augment):
    view = View("v", 1, 24, jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, gray_p=0.3, blur_p=0.5, solarize_p=0.3)
    rng = np.random.default_rng(0)
    params = torch.tensor([draw_colour(view, rng.random(10).tolist()) for _ in range(60)])
    images, mean, std = crops(60), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    expected = []
    for image, values in zip(images.float() / 255, params.tolist(), strict=True):
        for operation in ORDERS[int(values[Column.ORDER])]:
            image = TORCHVISION[operation](image, values[operation])
        if values[Column.GRAY]:
            image = tv.rgb_to_grayscale(image, 3)
        if sigma := values[Column.SIGMA]:
            image = torch.from_numpy(gaussian_filter(image.numpy(), (0, sigma, sigma), mode="nearest"))
        if values[Column.SOLARIZE]:
            image = tv.solarize(image, 128 / 255)
        expected.append(tv.normalize(image, list(mean), list(std)))
    actual = augment(images, params, mean, std)
    close = (actual - torch.stack(expected)).abs() < 1e-4
    # A value within rounding of the threshold may be solarized by one and not by the other.
    assert close.float().mean() > 0.9999
    assert (params != torch.tensor(UNCHANGED)).any(0).all(), "every operation takes part"


def test_neutral_parameters_only_normalise(augment):
    images = crops(3)
    expected = tv.normalize(images.float() / 255, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    actual = augment(images, torch.tensor([UNCHANGED] * 3), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(normalise(images, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), expected)


def test_gray_keeps_three_channels_and_is_pillows(augment):
    images = crops(2)
    actual = augment(images, torch.tensor([row(gray=1.0)] * 2), ZERO, ONE)
    assert (actual == actual[:, :1]).all()
    pillow = np.stack([np.asarray(Image.fromarray(i.permute(1, 2, 0).numpy()).convert("L")) for i in images])
    assert (actual[:, 0] * 255 - torch.from_numpy(pillow)).abs().max() < 0.6  # Pillow rounds


def test_solarize_is_pillows_for_every_value(augment):
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    expected = np.asarray(ImageOps.solarize(Image.fromarray(ramp[0, 0].numpy()), threshold=128))
    actual = augment(ramp, torch.tensor([row(solarize=1.0)]), ZERO, ONE)
    np.testing.assert_array_equal((actual[0, 0] * 255).round().numpy(), expected)


def test_blur_is_scipys_gaussian_with_repeated_edges():
    sigmas = (0.1, 0.5, 1.0, 2.0, 6.0)
    x = crops(len(sigmas), 20).float() / 255
    expected = [
        gaussian_filter(i.numpy(), (0, s, s), mode="nearest", truncate=4.0) for i, s in zip(x, sigmas, strict=True)
    ]
    actual = blur(x, torch.tensor(sigmas))
    np.testing.assert_allclose(actual.numpy(), np.stack(expected), atol=2e-6)


def test_blur_of_oblong_images():
    x = crops(2, 24).float()[:, :, :10] / 255
    expected = gaussian_filter(x.numpy(), (0, 0, 1.5, 1.5), mode="nearest", truncate=4.0)
    np.testing.assert_allclose(blur(x, torch.full((2,), 1.5)).numpy(), expected, atol=2e-6)


def test_blur_is_near_pillows_approximation(augment):
    picture = photo(64, 64, 3)
    pillow = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(1.5)), dtype=float)
    actual = augment(torch.from_numpy(picture).permute(2, 0, 1)[None], torch.tensor([row(sigma=1.5)]), ZERO, ONE)
    difference = np.abs(actual[0].permute(1, 2, 0).numpy() * 255 - pillow)
    assert difference.mean() < 1.0
    assert difference.mean() < 0.1 * np.abs(picture - pillow).mean()


def test_a_crop_does_not_depend_on_its_batch(augment):
    images = crops(6)
    sigmas = (0.3, 2.0, 0.0, 1.0, 0.7, 5.0)
    params = torch.tensor([row(brightness=1.2, hue=0.05, order=float(3 * i), sigma=s) for i, s in enumerate(sigmas)])
    together = augment(images, params, ZERO, ONE)
    alone = torch.cat([augment(images[i : i + 1], params[i : i + 1], ZERO, ONE) for i in range(6)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_autocast_does_not_reach_in(augment):
    images, params = crops(2), torch.tensor([row(sigma=1.0, contrast=1.3)] * 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = augment(images, params, ZERO, ONE)
    assert torch.equal(inside, augment(images, params, ZERO, ONE))


def test_tiles_change_nothing(monkeypatch):
    """How many crops a CPU does at once, and in which order, is a matter of speed."""
    view = View("v", 1, 24, jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, gray_p=0.3, blur_p=0.5, solarize_p=0.3)
    rng, images = np.random.default_rng(3), crops(40)
    params = torch.tensor([draw_colour(view, rng.random(10).tolist()) for _ in range(40)])
    whole = ours.augment(images, params, ZERO, ONE)
    for tile in (1, 5 * 3 * 24 * 24):
        monkeypatch.setattr(ours, "_TILE", tile)
        torch.testing.assert_close(ours.augment(images, params, ZERO, ONE), whole, atol=1e-6, rtol=0)


def test_kernels_of_wide_blurs_and_oblong_crops(augment):
    """Wider than what is summed up at once; crops that are no whole number of the lines worked on together."""
    rng = np.random.default_rng(5)
    image = torch.from_numpy(rng.integers(0, 256, (1, 3, 21, 34), np.uint8))
    for sigma in (0.3, 1.9, 2.2, 4.0):
        expected = [gaussian_filter(c, sigma, mode="nearest", truncate=4.0) for c in image[0].double().numpy() / 255]
        actual = augment(image, torch.tensor([row(sigma=sigma)]), ZERO, ONE)[0]
        np.testing.assert_allclose(actual.numpy(), np.stack(expected), atol=2e-6)


def test_the_order_in_memory_changes_nothing(augment):
    images, params = crops(3), torch.tensor([row(sigma=1.0), row(contrast=1.3), row(gray=1.0)])
    out = torch.empty(images.shape, memory_format=torch.channels_last)
    found = augment(images, params, ZERO, ONE, out=out)
    assert found is out
    assert torch.equal(out, augment(images, params, ZERO, ONE))


def test_threads_change_nothing(monkeypatch):
    params = torch.tensor([row(sigma=0.2 * i, contrast=1.3, hue=0.03 * i, order=float(i)) for i in range(7)])
    alone = ours.augment(crops(7), params, ZERO, ONE, kernels=True)
    monkeypatch.setattr(kernels.torch, "get_num_threads", lambda: 3)
    assert torch.equal(ours.augment(crops(7), params, ZERO, ONE, kernels=True), alone)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_what_the_cpu_gives():
    view = View("v", 1, 24, jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, gray_p=0.3, blur_p=0.5)
    rng, images = np.random.default_rng(0), crops(60)
    params = torch.tensor([draw_colour(view, rng.random(10).tolist()) for _ in range(60)])
    expected = ours.augment(images, params, ZERO, ONE)
    torch.testing.assert_close(ours.augment(images.cuda(), params, ZERO, ONE).cpu(), expected, atol=1e-3, rtol=0)
