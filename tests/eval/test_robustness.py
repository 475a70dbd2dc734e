"""Robustness: attacks against what is known of linear models, and the whole kind on real files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ssl_vit.backbones.backbone import Features
from ssl_vit.cli import main
from ssl_vit.data.evalset import EvalDataset
from ssl_vit.data.sources import open_source
from ssl_vit.errors import UserError
from ssl_vit.eval.api import evaluate
from ssl_vit.eval.attacks import attacked
from ssl_vit.eval.corruptions import CORRUPTIONS
from ssl_vit.eval.linear import LinearProbe, Scaling
from ssl_vit.eval.readout import Readout
from ssl_vit.eval.robustness import corrupted, hidden, shuffled

SIZE = 8


class Linear(nn.Module):
    """Two features: products of the image with fixed weights."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3 * SIZE * SIZE, 2, generator=torch.Generator().manual_seed(0)))

    def forward(self, images):
        return Features(images.flatten(1) @ self.weights, images)


@pytest.fixture(scope="module")
def greys(tmp_path_factory):
    """40 noisy images of the size that is read, so that nothing is resized; none near black or white."""
    path, rng = tmp_path_factory.mktemp("greys"), np.random.default_rng(0)
    for label in ("a", "b"):
        (path / label).mkdir()
        for i in range(20):
            pixels = rng.integers(90, 166, (9, 9, 3)).astype(np.uint8)  # 8 x 256/224 is 9
            Image.fromarray(pixels).save(path / label / f"{i:02}.png")
    return open_source(path)


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("radius", [0.0005, 0.002, 0.01])
def test_attacks_reach_what_is_known_to_be_the_worst_for_a_linear_model(greys, radius, steps):
    """The margin falls by radius x the sum of |slopes|, and by no more."""
    readout = Readout(SIZE, (0.5, 0.4, 0.6), (0.2, 0.25, 0.3), batch_size=16)
    scaling = Scaling(np.float32([0.3, -0.2]), np.float32([2.0, 3.0]))
    weights = torch.tensor([[1.0, -0.5], [-2.0, 1.0], [0.1, 0.2]])
    model, probe = Linear(), LinearProbe(1.0, {}, scaling, weights)
    dataset = EvalDataset(greys, SIZE)
    images = torch.stack([dataset[i].image for i in range(len(dataset))]).double() / 255
    mean, std = (torch.tensor(each).double().view(3, 1, 1) for each in (readout.mean, readout.std))
    scaled = ((images - mean) / std).flatten(1) @ model.weights.double() - torch.tensor([0.3, -0.2])
    margin = (scaled / torch.tensor([2.0, 3.0])) @ (weights[:2, 0] - weights[:2, 1]).double() - 0.1
    slope = (model.weights.double() / torch.tensor([2.0, 3.0])) @ (weights[:2, 0] - weights[:2, 1]).double()
    worst = radius * (slope.view(3, -1) / std.view(3, 1)).abs().sum()
    signed = torch.where(torch.tensor(greys.labels) == 0, margin, -margin)
    assert ((signed - worst).abs() > 1e-3).all()
    found = attacked(model, greys, readout, probe, radius, steps)
    np.testing.assert_array_equal(found, (signed > worst).numpy())


def test_each_image_has_its_own_and_the_same_random_numbers():
    image = np.full((32, 32, 3), 100, np.uint8)
    first = corrupted("gaussian_noise", 1, 0, image, 5)
    np.testing.assert_array_equal(first, corrupted("gaussian_noise", 1, 0, image, 5))
    others = [corrupted("gaussian_noise", 2, 0, image, 5), corrupted("gaussian_noise", 1, 0, image, 6)]
    assert all((first != other).mean() > 0.5 for other in [*others, corrupted("gaussian_noise", 1, 1, image, 5)])


@pytest.mark.parametrize("share", [0, 25, 75, 100])
def test_so_much_is_hidden(share):
    image = np.random.default_rng(0).integers(0, 100, (56, 56, 3)).astype(np.uint8)
    image[::2, ::2] = 200
    found = hidden(share, 0, image, 3)
    assert (found != image).any(2).mean() == pytest.approx(share / 100, abs=0.02)


def test_shuffling_moves_whole_tiles():
    image = np.random.default_rng(0).integers(0, 256, (16, 18, 3)).astype(np.uint8)
    found = shuffled(2, 0, image, 1)
    tiles = {image[y : y + 8, x : x + 9].tobytes() for y in (0, 8) for x in (0, 9)}
    assert {found[y : y + 8, x : x + 9].tobytes() for y in (0, 8) for x in (0, 9)} == tiles
    assert (found != image).any()


def test_the_whole_kind_and_its_picture(run, images, tmp_path, capsys):
    few = ["--corruptions", "contrast,gaussian_noise", "--severities", "1,5", "--hide", "0,50", "--shuffle", "2"]
    sides = ["--train", str(images / "train"), "--val", str(images / "val")]
    picture = tmp_path / "map.png"
    assert main(["eval", "robustness", str(run), *sides, *few, "--radius", "0,8", "--figure", str(picture)]) == 0
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 800
    scores = json.loads(capsys.readouterr().out)["robustness"]
    assert scores["hidden"]["0"] == scores["fgsm"]["0"] == scores["clean"] > 40
    errors = [100 - value for levels in scores["corruptions"].values() for value in levels.values()]
    assert scores["mean_corruption_error"] == pytest.approx(np.mean(errors))
    assert scores["pgd"]["8"] <= scores["fgsm"]["8"] + 3
    assert scores["pgd"]["8"] < scores["clean"]


def test_an_unknown_corruption_is_named(run, images):
    with pytest.raises(UserError, match="did you mean snow"):
        evaluate("robustness", run, train=images / "train", val=images / "val", corruptions=("snows",))
    assert len(CORRUPTIONS) == 15
