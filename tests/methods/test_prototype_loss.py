"""The loss with its own gradient against torch's autograd on the formula as it is written."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from ssl_vit.methods import heads, prototype_loss
from ssl_vit.methods.heads import Prototypes
from ssl_vit.methods.prototype_loss import cross_view_loss

CROPS, IMAGES, DIM, COUNT, TEMP = 5, 3, 6, 11, 0.1


def written_out(vectors, prototypes, targets, temp):
    """Softmax by softmax, pair by pair."""
    weight = torch.nn.functional.normalize(prototypes.weight_v, dim=1) * prototypes.weight_g
    losses = [
        -(target * ((crop @ weight.T) / temp).log_softmax(-1)).sum(-1).mean()
        for t, target in enumerate(targets)
        for v, crop in enumerate(vectors)
        if v != t
    ]
    return torch.stack(losses).mean()


def given(teachers, dtype=torch.float64):
    torch.manual_seed(0)
    prototypes = Prototypes(DIM, COUNT, fixed_length=False).to(dtype)
    torch.nn.init.uniform_(prototypes.weight_g, 0.5, 2.0)
    vectors = normalize(torch.randn(CROPS, IMAGES, DIM, dtype=dtype), dim=-1).requires_grad_()
    targets = torch.randn(teachers, IMAGES, COUNT, dtype=dtype).softmax(-1)
    return vectors, prototypes, targets


@pytest.mark.parametrize(("cells", "tile"), [(2**24, 4096), (2 * CROPS * COUNT, 4), (1, 3)])
@pytest.mark.parametrize("teachers", [1, 2])
def test_value_and_gradients_are_autograds(monkeypatch, cells, tile, teachers):
    """However many images have their logits at once, and however many prototypes are read at once."""
    monkeypatch.setattr(prototype_loss, "CELLS", cells)
    monkeypatch.setattr(heads, "TILE", tile)
    vectors, prototypes, targets = given(teachers)
    sources = (vectors, prototypes.weight_v, prototypes.weight_g)
    value, expected = (f(vectors, prototypes, targets, TEMP) for f in (cross_view_loss, written_out))
    assert abs(value.item() - expected.item()) < 1e-10
    for mine, theirs in zip(
        torch.autograd.grad(3 * value, sources), torch.autograd.grad(3 * expected, sources), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)


def test_without_a_gradient_the_value_is_the_same():
    vectors, prototypes, targets = given(2)
    with torch.no_grad():
        assert cross_view_loss(vectors, prototypes, targets, TEMP).item() == pytest.approx(
            written_out(vectors, prototypes, targets, TEMP).item(), abs=1e-12
        )


def test_prototypes_of_no_length_learn_their_length(monkeypatch):
    monkeypatch.setattr(heads, "TILE", 4)
    vectors, prototypes, targets = given(2)
    torch.nn.init.zeros_(prototypes.weight_g)
    mine, theirs = (
        torch.autograd.grad(f(vectors, prototypes, targets, TEMP), prototypes.weight_g)[0]
        for f in (cross_view_loss, written_out)
    )
    assert theirs.abs().max() > 1e-3
    torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("tile", [4096, 4])
def test_logits_without_gradients_are_those_with(monkeypatch, tile):
    monkeypatch.setattr(heads, "TILE", tile)
    vectors, prototypes, _ = given(2)
    expected = prototypes(vectors)
    assert expected.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(prototypes(vectors), expected.detach(), atol=1e-14, rtol=0)


def test_in_bfloat16_it_is_near():
    vectors, prototypes, targets = given(2, torch.float32)
    expected = written_out(vectors, prototypes, targets, TEMP)
    exact_grads = torch.autograd.grad(expected, (vectors, prototypes.weight_v))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = cross_view_loss(vectors, prototypes, targets, TEMP)
    assert value.item() == pytest.approx(expected.item(), rel=0.02)
    for mine, theirs in zip(torch.autograd.grad(value, (vectors, prototypes.weight_v)), exact_grads, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() < 0.03 * theirs.norm()


def prototypes_of_logits():
    """Whose logits are the vectors themselves."""
    prototypes = Prototypes(COUNT, COUNT).double()
    with torch.no_grad():
        prototypes.weight_v.copy_(torch.eye(COUNT))
    return prototypes


def test_loss_of_uniform_outputs_is_ln_k_and_of_certain_equal_outputs_nothing():
    uniform, zeros = torch.full((2, 3, COUNT), 1 / COUNT).double(), torch.zeros(5, 3, COUNT).double()
    assert cross_view_loss(zeros, prototypes_of_logits(), uniform, 1.0).item() == pytest.approx(math.log(COUNT))
    certain = torch.nn.functional.one_hot(torch.zeros(2, 3, dtype=torch.long), COUNT).double()
    sure = 100 * certain[:1].expand(5, 3, COUNT)
    assert cross_view_loss(sure, prototypes_of_logits(), certain, 1.0).item() == pytest.approx(0, abs=1e-12)
