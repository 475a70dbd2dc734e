"""Regions of like patches: where they are known, and of an export against its own network."""

import pickle
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from ssl_vit.backbones.backbone import Features
from ssl_vit.data.sources import open_source
from ssl_vit.errors import UserError
from ssl_vit.proposals import create_prior
from ssl_vit.proposals.propose import propose
from tests.export.conftest import TINY_VIT, randomised, written
from tests.proposals.test_regions import slowly

MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.25, 0.2)


@pytest.fixture(scope="module")
def network():
    return randomised("vit_tiny_patch16_224", model_args=TINY_VIT | {"patch_size": 4})


@pytest.fixture(scope="module")
def export(network, tmp_path_factory):
    return written(network, tmp_path_factory.mktemp("patches") / "export", mean=MEAN, std=STD, description={})


class Colours(nn.Module):
    """A network to which patches of one colour are alike, and others at a right angle to them."""

    def __init__(self, info):
        super().__init__()
        self.info, self.scale = info, nn.Parameter(torch.ones(1))

    def forward(self, images):
        colours = (images > 0).float() + 0.01
        return Features(images.mean((2, 3)), F.avg_pool2d(self.scale * colours, 4))


def test_the_first_boxes_are_the_ground_and_the_figures(export):
    prior = create_prior("patches", count=3, weights=str(export))
    size = prior.network.info.size[0]
    prior.__dict__["network"] = Colours(prior.network.info)
    image = np.zeros((size, size, 3), np.uint8)
    image[..., 2] = 255
    image[4:16, 8:24] = (255, 0, 0)
    image[24:, :12] = (0, 255, 0)
    expected = np.array([[0, 0, 32, 32], [8, 4, 24, 16], [0, 24, 12, 32]]) / size
    np.testing.assert_allclose(prior(image), expected)


def test_boxes_of_an_export_are_those_of_its_patches(network, export):
    size = network.info.size[0]
    image = np.random.default_rng(3).integers(0, 256, (size, size, 3), dtype=np.uint8)
    pixels = (image / 255 - MEAN) / STD
    with torch.no_grad():
        patches = network(torch.tensor(pixels.transpose(2, 0, 1)[None], dtype=torch.float32)).patches[0]
    grid = F.normalize(patches, dim=0).permute(1, 2, 0).numpy()
    rows, columns = grid.shape[:2]
    regions = sorted(slowly(grid.astype(np.float64)), key=lambda region: -region[2])
    wide = [
        (left, top, right, bottom)
        for (left, top, right, bottom), cells, _ in regions
        if min(right - left, bottom - top) >= 2 and cells < 0.9 * rows * columns
    ]
    boxes = create_prior("patches", count=3, weights=str(export))(image)
    first = np.array(wide[0]) / [columns, rows, columns, rows]
    assert np.abs(boxes - first).max(1).min() < 1e-6
    assert {tuple(np.rint(box * columns).astype(int)) for box in boxes} <= set(wide)


def test_kept_boxes_are_the_same_with_workers_and_in_batches(export, pictures, tmp_path):
    prior, source = create_prior("patches", count=5, weights=str(export)), open_source(pictures / "val")
    one, many = (propose(source, prior, tmp_path / str(n), workers=n) for n in (0, 2))
    np.testing.assert_array_equal(one.boxes, many.boxes)
    alone = prior(np.array(Image.open(source.path(3)).convert("RGB")))
    np.testing.assert_array_equal(one[3], alone)


def test_what_counts_is_what_the_file_holds(export, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(export, copy)
    prior = create_prior("patches", weights=str(export))
    assert create_prior("patches", weights=str(copy)).settings() == prior.settings()
    other = randomised("vit_tiny_patch16_224", model_args=TINY_VIT)
    changed = written(other, tmp_path / "other", mean=MEAN, std=STD, description={})
    assert create_prior("patches", weights=str(changed)).settings() != prior.settings()


def test_weights_are_asked_for():
    with pytest.raises(UserError, match="set weights to its file"):
        create_prior("patches")
    with pytest.raises(UserError, match="no such file"):
        create_prior("patches", weights="nowhere.pth").settings()


def test_processes_that_read_need_no_network(export):
    prior = create_prior("patches", weights=str(export))
    image = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    elsewhere = pickle.loads(pickle.dumps(prior))
    np.testing.assert_array_equal(elsewhere.look(image, 0), prior.look(image, 0))
    assert "network" not in vars(elsewhere)
    np.testing.assert_array_equal(elsewhere(image), prior(image))
