"""The losses of patch diversification against their formulas, and that they reach every backbone's student."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssl_vit.backbones.diversity import patch_contrast, patch_cosine, patch_mixing
from tests.training.test_penalties import stepped


def patches(seed: int, number: int = 5) -> Tensor:
    return torch.randn(3, number, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cosines_are_those_of_all_pairs() -> None:
    x, total = patches(0), 0.0
    for image in x:
        for i in range(5):
            for j in range(5):
                total += abs(float(image[i] @ image[j] / (image[i].norm() * image[j].norm()))) * (i != j)
    assert float(patch_cosine(x)) == pytest.approx(total / (3 * 5 * 4), abs=1e-12)
    assert float(patch_cosine(patches(0, 1))) == 0


def test_contrast_is_that_of_each_patch_with_the_mean_of_the_others() -> None:
    first, last, total = patches(1), patches(2).requires_grad_(), 0.0
    for pair in zip(first, last.detach(), strict=True):
        old, new = (each / each.norm(dim=1, keepdim=True) for each in pair)
        for i in range(5):
            others = torch.stack([new[j] for j in range(5) if j != i]).mean(0)
            own, rest = math.exp(float(old[i] @ new[i])), math.exp(float(old[i] @ others))
            total -= math.log(own / (own + rest))
    first.requires_grad_()
    loss = patch_contrast(first, last)
    assert float(loss.detach()) == pytest.approx(total / 15, abs=1e-12)
    loss.backward()
    assert first.grad is None
    assert last.grad is not None
    assert bool(last.grad.abs().max() > 0)


def test_mixed_patches_answer_for_their_own_image() -> None:
    logits, labels = patches(3), torch.tensor([[0, 1, 2, 3, 0], [1] * 5, [2] * 5])
    by_hand = -logits.log_softmax(-1).gather(2, labels[..., None]).mean()
    torch.testing.assert_close(patch_mixing(logits, labels), by_hand, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["dino", "mae", "moby"])
def test_the_student_alone_is_penalised(name: str, pictures: Path) -> None:
    more = {"method.mask_ratio": 0.5} if name == "mae" else {}
    plain, before = stepped(name, pictures, **more)
    found, after = stepped(name, pictures, **more | {"train.diversify": 1.0})
    assert plain.penalties == {}
    assert set(found.penalties) == {"patch_cosine", "patch_contrast"}
    assert found.loss == plain.loss
    assert 0 < float(found.penalties["patch_contrast"]) < 2 * 2 * math.log(2), "of two sizes of crops, or two views"
    assert any(not after[key].equal(before[key]) for key in before)
