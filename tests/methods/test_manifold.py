"""Manifold distillation against plain N x N relation maps, written out in numpy float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ssl_vit.backbones import create_backbone
from ssl_vit.backbones.intermediates import layer_count, read_all, read_layers, reads_at_once
from ssl_vit.errors import UserError
from ssl_vit.methods.manifold import Manifold, draw_patches
from ssl_vit.methods.manifold_config import Config
from ssl_vit.methods.method import Progress
from ssl_vit.methods.similarity import on_grid
from tests.methods.settings import TEACHER
from tests.methods.small import REAL, slope
from tests.methods.test_distill import divergence, resolved, unit

IMAGES, STEP, DRAWN = 3, 5, 11
WEIGHTS = {"inside_weight": 0.5, "across_weight": 2.0, "random_weight": 1.5, "pooled_weight": 0.25}
VIT = {"patch_size": 4, "embed_dim": 12, "depth": 3, "num_heads": 2}


def make(**more: Any) -> Manifold:
    """A student of 4 x 4 patches of 16 pixels, and a teacher of 2 x 2."""
    torch.manual_seed(0)
    given = {"teacher": TEACHER, "teacher_size": 16, "queue_size": 7, "temperature": 0.5, "scale": (0.3, 1.0)}
    given |= {"layers": ((0, 0), (2, -1)), "random_patches": DRAWN} | WEIGHTS
    student = create_backbone("vit_tiny_patch16_224", image_size=16, model_args=VIT)
    return Manifold(Config(**given | more), student, 16).double()


def plain(own: np.ndarray, its: np.ndarray) -> float:
    """The mean squared difference of relation maps of rows [N, D] and [N, E], one relation after the other."""
    found = [(a @ b - c @ d) ** 2 for a, c in zip(own, its, strict=True) for b, d in zip(own, its, strict=True)]
    return float(np.mean(found))


def expected(method: Manifold, images: torch.Tensor) -> dict[str, float]:
    """Each kind's mean over layers, from what both networks give."""
    own = [each for each, _ in read_layers(method.student.backbone, images, [0, 2])]
    its = [each for each, _ in read_layers(method.teacher.network, method.teacher.as_it_wants(images), [0, 1])]
    found: dict[str, list[float]] = {"inside": [], "across": [], "random": []}
    for student, teacher in zip(own, its, strict=True):
        s, t = (unit(each.detach().flatten(2).mT.numpy()) for each in (student, on_grid(teacher, (4, 4))))
        found["inside"].append(np.mean([plain(a, b) for a, b in zip(s, t, strict=True)]))
        found["across"].append(np.mean([plain(s[:, n], t[:, n]) for n in range(16)]))
        drawn = draw_patches(16 * IMAGES, DRAWN, STEP).numpy()
        places, numbers = drawn // IMAGES, drawn % IMAGES
        found["random"].append(plain(s[numbers, places], t[numbers, places]))
    return {name: float(np.mean(values)) for name, values in found.items()}


def test_loss_is_that_of_the_plain_relation_maps() -> None:
    method, images = make(), torch.randn(IMAGES, 3, 16, 16, dtype=torch.float64)
    step = method([images], Progress(STEP, 10, 2))
    kinds = expected(method, images)
    for name, value in kinds.items():
        assert step.parts[f"{name}_loss"].item() == pytest.approx(value, rel=0, abs=1e-10)
    told, seen = method.teacher.look(images), method.student.backbone(images)
    vectors = method.student.head(seen.pooled).detach().numpy()
    pooled, _ = divergence(vectors, unit(told.pooled.numpy()), method.queue.numpy())
    total = WEIGHTS["pooled_weight"] * pooled + sum(WEIGHTS[f"{name}_weight"] * kinds[name] for name in kinds)
    assert step.loss.item() == pytest.approx(total, rel=0, abs=1e-10)


def test_gradients_are_those_of_the_plain_maps() -> None:
    """Of every weight: of the maps N x N, made by torch one by one, and by difference of the loss for one weight."""
    method, images = make(pooled_weight=0.0), torch.randn(IMAGES, 3, 16, 16, dtype=torch.float64)
    method([images], Progress(STEP, 10, 2)).loss.backward()
    found = {
        name: each.grad.clone() for name, each in method.student.backbone.named_parameters() if each.grad is not None
    }
    method.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    own = [each for each, _ in read_layers(method.student.backbone, images, [0, 2])]
    its = [each for each, _ in read_layers(method.teacher.network, method.teacher.as_it_wants(images), [0, 1])]
    for student, teacher in zip(own, its, strict=True):
        s, t = (each.flatten(2).mT for each in (student, on_grid(teacher, (4, 4))))
        s, t = s / s.norm(dim=-1, keepdim=True), t / t.norm(dim=-1, keepdim=True)
        total = (
            total + 0.5 * (torch.einsum("bnd,bmd->bnm", s, s) - torch.einsum("bnd,bmd->bnm", t, t)).pow(2).mean() / 2
        )
        total = (
            total + 2.0 * (torch.einsum("bnd,cnd->nbc", s, s) - torch.einsum("bnd,cnd->nbc", t, t)).pow(2).mean() / 2
        )
        drawn = draw_patches(16 * IMAGES, DRAWN, STEP)
        s, t = (each[drawn % IMAGES, drawn // IMAGES] for each in (s, t))
        total = total + 1.5 * (s @ s.T - t @ t.T).pow(2).mean() / 2
    total.backward()
    for name, each in method.student.backbone.named_parameters():
        if name in found:
            torch.testing.assert_close(
                found[name], torch.zeros_like(each) if each.grad is None else each.grad, rtol=0, atol=1e-10
            )
    weight = method.student.backbone.model.blocks[1].mlp.fc1.weight
    by_difference = slope(lambda: method([images], Progress(STEP, 10, 2)).loss.item(), weight, (0, 0))
    assert by_difference == pytest.approx(weight.grad[0, 0].item(), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", REAL)
def test_a_pass_gives_layers_and_features_at_once(name: str) -> None:
    backbone, images = create_backbone(name, model_args=REAL[name]).eval(), torch.randn(2, 3, 64, 64)
    assert reads_at_once(backbone)
    layers = list(range(layer_count(backbone)))
    with torch.no_grad():
        features, maps = read_all(backbone, images, layers)
        for found, expected in zip(features, backbone(images), strict=True):
            torch.testing.assert_close(found, expected)
        twice = read_all(backbone, images, layers, at_once=False)[1]
    assert [each.shape for each in maps] == [each.shape for each in twice]
    assert all(torch.equal(a, b) for a, b in zip(maps, twice, strict=True))


def test_patches_are_drawn_alike_everywhere_and_anew_at_each_step() -> None:
    assert torch.equal(draw_patches(100, 8, 3), draw_patches(100, 8, 3))
    assert not torch.equal(draw_patches(100, 8, 3), draw_patches(100, 8, 4))
    assert len(draw_patches(100, 192, 3).unique()) == 100


def test_layers_are_chosen_by_what_both_networks_have() -> None:
    config, decisions = resolved(method__name="manifold")
    assert config.method.layers == ((0, 0), (1, 1))
    assert next(each.why for each in decisions if each.key == "method.layers").startswith("the last 2 of 2")
    with pytest.raises(
        UserError, match=r"^method\.layers: \[0, 2\] asks for layer 2 of the teacher, which has layers 0"
    ):
        resolved(method__name="manifold", method__layers=[[0, 2]])
