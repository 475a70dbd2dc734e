"""SimMIM against its objective (2111.09886, section 3) written again in numpy, in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ssl_vit.backbones import create_backbone
from ssl_vit.methods.simmim import SimMIM
from ssl_vit.methods.simmim_config import Config
from tests.methods.masked import (
    START,
    array,
    cells,
    every_weight_gets_a_gradient,
    images,
    linear_numpy,
    three_steps_equal,
)
from tests.methods.siamese import SITUATION
from tests.methods.small import REAL, Patchy, seen_by


def make() -> SimMIM:
    torch.manual_seed(0)
    return SimMIM(Config(), Patchy(), 8).double()


def reference(method: SimMIM, batch: torch.Tensor, seed: int) -> tuple[float, float]:
    """The mean of |pixel - predicted| over hidden pixels; and with the mean colour of what is seen as prediction."""
    torch.manual_seed(seed)
    masks = method.draw_masks(len(batch), *method.grid).numpy()
    _, patches = seen_by(method.backbone, batch, masks)
    predicted = linear_numpy(method.head, patches).reshape(len(batch), 16, 3, 4)
    flat, pixels = masks.reshape(len(batch), 16), cells(batch)
    costs, plain = [], []
    for image in range(len(batch)):
        seen = pixels[image][~flat[image]].mean((0, 2))[None, :, None]
        costs.append(np.abs(predicted[image] - pixels[image])[flat[image]].ravel())
        plain.append(np.abs(seen - pixels[image])[flat[image]].ravel())
    return float(np.concatenate(costs).mean()), float(np.concatenate(plain).mean())


def test_three_steps_equal_the_formula() -> None:
    method = make()
    watched = {"head.weight": (7, 2), "head.bias": (11,), "backbone.linear.weight": (1, 4), "backbone.token": (2,)}
    three_steps_equal(method, lambda batch, seed: reference(method, batch, seed)[0], watched)


def test_a_guess_that_does_not_look_is_measured() -> None:
    method, batch = make(), images(0)
    torch.manual_seed(0)
    parts = method([batch], START).parts
    assert parts["blind_loss"].item() == pytest.approx(reference(method, batch, 0)[1])
    assert parts["hidden"].item() == pytest.approx(10 / 16)  # 0.6 of the patches, rounded up


def test_squares_of_32_pixels_of_an_image_of_192() -> None:
    method = make()
    method.grid = (48, 48)  # patches of four pixels
    torch.manual_seed(0)
    masks = method.draw_masks(20, *method.grid)
    squares = masks.view(20, 6, 8, 6, 8)
    assert bool((squares.any((2, 4)) == squares.all((2, 4))).all())
    assert squares.all((2, 4)).sum((1, 2)).tolist() == [22] * 20  # ceil(0.6 * 36)


def test_the_recipe_is_the_official_one() -> None:
    chosen = {key: value for key, (value, _) in Config().choose(replace(SITUATION, batch_size=2048)).items()}
    assert chosen["optim.lr"] == pytest.approx(8e-4)
    assert (chosen["optim.weight_decay"], chosen["optim.clip"]) == (0.05, 5.0)
    (view,) = Config().views(192).views
    assert (view.scale, view.jitter_p, view.flip_p) == ((0.67, 1.0), 0.0, 0.5)


def test_a_grid_that_reaches_beyond_the_image() -> None:
    """A convolutional network rounds its last map up: 2 x 2 of 33 pixels."""
    backbone = create_backbone("resnet10t", image_size=33, masked=True)
    assert backbone.info.grid == (2, 2)
    torch.manual_seed(0)
    assert array(SimMIM(Config(), backbone, 33)([torch.randn(2, 3, 33, 33)], START).loss) > 0


@pytest.mark.parametrize("name", list(REAL))
def test_trains_real_backbones(name: str) -> None:
    backbone = create_backbone(name, image_size=64, model_args=REAL[name], masked=True)
    every_weight_gets_a_gradient(SimMIM(Config(), backbone, 64), 64)
