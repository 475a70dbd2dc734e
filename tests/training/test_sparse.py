"""Sparse training: densities are the formula's, what is 0 stays 0 in student and teacher, and runs go on exactly."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_vit.backbones import create_backbone
from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.checkpoints.load import backbone_of_file
from ssl_vit.compress.prune import shrink
from ssl_vit.config import ResolvedConfig
from ssl_vit.errors import UserError
from ssl_vit.methods.method import Method
from ssl_vit.run.prepare import build_method
from ssl_vit.run.pretrain import pretrain
from ssl_vit.training.fabric import new_fabric
from ssl_vit.training.sparse import Layer, Masks, _changed, erk, even, masks_of
from ssl_vit.training.step import Learner, ReadyViews, take_step
from tests.methods.settings import COMMON, SMALL
from tests.runs import Trap, command, finish, rows, weights
from tests.test_families_train import resolved

STEPS = 100  # of which every other changes the masks


def test_densities_are_the_formula_by_hand() -> None:
    """Linear layers [4, 4], [16, 32] and a convolution [8, 4, 3, 3], half of 816 weights.

    With a factor of 4.25 for sums of 8, 48 and 18 over 16, 512 and 288 weights the first would have 34 of 16: it is
    dense, and the others share 392 as 48 to 18: 285.09 and 106.91.
    """
    assert erk([(4, 4), (16, 32), (8, 4, 3, 3)], 0.5) == [16, 285, 107]


@pytest.mark.parametrize("density", [0.9, 0.5, 0.33, 0.1, 0.013])
def test_the_density_of_all_together_is_exact(density: float) -> None:
    shapes = [tuple(p.shape) for p in create_backbone("vit_tiny_patch16_224").parameters() if p.ndim == 2]
    counts = erk(shapes, density)
    assert sum(counts) == round(density * sum(map(np.prod, shapes)))
    assert all(0 <= count <= np.prod(shape) for count, shape in zip(counts, shapes, strict=True))


def test_units_are_shared_evenly_and_no_layer_goes() -> None:
    assert even([3] * 12, 0.5) == [1, 2] * 6
    assert even([64, 64], 0.25) == [16, 16]
    assert even([2, 2, 2], 0.01) == [1, 1, 1]


def test_the_smallest_are_dropped_and_the_steepest_grown() -> None:
    """By hand: of four weights two, -0.1 and 0.2, make room for the largest gradients, the one at 0.2 again."""
    weight = torch.nn.Parameter(torch.tensor([[5.0, 0.2, 0, 0], [-0.1, -4, 0, 0]]))
    mask = weight.detach() != 0
    gradient = torch.tensor([[0.0, 9, 1, -2], [0, 0, 8, 3]])
    new = _changed(Layer("w", weight, 0), mask, gradient, 0.5)
    assert new.int().tolist() == [[1, 1, 0, 0], [0, 1, 1, 0]]


def method_of(name: str, **more: Any) -> tuple[ResolvedConfig, Method, Masks]:
    config = resolved(name, "vision_transformer", **{"train.sparsity": 0.6} | more)
    torch.manual_seed(0)
    method = build_method(config)
    masks = masks_of(method)
    assert masks is not None
    return config, method, masks


@pytest.mark.parametrize(("name", "units"), [("dino", False), ("dino", True), ("mae", False), ("moby", False)])
def test_what_is_zero_stays_zero_in_teachers_too(name: str, units: bool) -> None:
    config, method, masks = method_of(name, **{"train.sparse_units": units})
    density, before = masks.density(), [mask.clone() for mask in masks.masks()]
    counts = [int(mask.sum()) for mask in before]
    learner = Learner(new_fabric(config.train), method, config, per_epoch=10, total=STEPS)
    torch.manual_seed(1)
    views = [torch.randn(view.count * 8, 3, view.size, view.size) for view in method.views().views]
    for step in range(5):
        take_step(learner, ReadyViews(views), step)
    assert [int(mask.sum()) for mask in masks.masks()] == counts
    assert masks.density() == density
    assert any(not torch.equal(*pair) for pair in zip(masks.masks(), before, strict=True))
    networks = [module for module in method.modules() if isinstance(module, AdaptedBackbone)]
    for network in networks:
        for layer, mask in zip(masks.layers, masks.masks(), strict=True):
            assert not network.get_parameter(layer.name)[~mask].any()
    moments = learner.optimizer.state[masks.layers[0].weight]["exp_avg"]
    assert not moments[~masks.masks()[0]].any()
    assert moments.any()
    assert {layer.weight.requires_grad for layer in masks.layers} == {True}


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_masks_and_weights(pictures: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    sparse = {"train__sparsity": 0.5, "train__epochs": 3}
    assert finish(command(pictures / "train", whole, **sparse), tmp_path / "said") == 0
    assert "sparse: 0.5 of " in (whole / "train.log").read_text()
    assert finish(command(pictures / "train", killed, **sparse), tmp_path / "said", Trap(signal.SIGKILL, 12)) == -9
    again = ["pretrain", str(pictures / "train"), "--out", str(killed), "--resume"]
    assert finish(again, tmp_path / "said") == 0
    assert rows(killed) == rows(whole)
    assert weights(killed) == weights(whole)
    model = backbone_of_file(whole).model
    found = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    most = round(0.5 * sum(w.numel() for w in found))  # what has just been grown is still 0
    assert 0.99 * most < sum(int((w != 0).sum()) for w in found) <= most


def test_sparse_units_are_cut_off_in_the_end(pictures: Path, tmp_path: Path) -> None:
    """A run by units, of four heads and 2 x 128 hidden units, has half of them left, and computes the same."""
    settings = {**COMMON, **{f"method.{key}": value for key, value in SMALL["simclr"].items()}}
    settings |= {"train.sparsity": 0.5, "train.sparse_units": True}
    pretrain(str(pictures / "train"), tmp_path / "run", settings, method="simclr")
    done = shrink(tmp_path / "run", tmp_path / "small")
    whole, small = backbone_of_file(tmp_path / "run").eval(), backbone_of_file(done.folder).eval()
    args = small.architecture()["model_args"]
    assert (sum(args["heads"]), sum(args["hidden"])) == (2, 128)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(small(images).pooled, whole(images).pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"train.sparsity": 0.5, "train.ema": 0.9}, r"train\.sparsity: 0\.5, which train\.ema would not keep"),
        ({"train.sparsity": 0.5, "optim.sam_rho": 0.1}, r"which optim\.sam_rho would not keep"),
        ({"train.sparse_units": True}, r"train\.sparse_units: says which weights are 0, but train\.sparsity is 0"),
    ],
)
def test_what_would_not_keep_zeros_is_refused_in_a_line(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        resolved("mae", "vision_transformer", **settings)
    assert "\n" not in str(refused.value)


def test_units_of_a_network_without_heads_are_refused_in_a_line() -> None:
    config = resolved("dino", "swin_transformer", **{"train.sparsity": 0.5, "train.sparse_units": True})
    with pytest.raises(UserError, match=r"train\.sparse_units: .* is no plain ViT") as refused:
        build_method(config)
    assert "\n" not in str(refused.value)
