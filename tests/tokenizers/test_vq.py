"""The fitted vocabulary: nearest words, the moving averages of VQ-VAE (1711.00937, appendix A.1), the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ssl_vit.backbones import create_backbone
from ssl_vit.tokenizers.vq import VQ, Codebook

GREY = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def make(codes: int = 8, stride: int = 4, **more) -> VQ:
    torch.manual_seed(0)
    return VQ(codes, stride, 10, *GREY, width=16, **more)


def test_a_patch_gets_the_nearest_word() -> None:
    tokenizer = make().double()
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    words = tokenizer(images, (4, 4)).numpy()
    vectors = tokenizer._encode(images).numpy()
    distances = ((vectors[..., None, :] - tokenizer.codebook.words.numpy()) ** 2).sum(-1)
    assert np.array_equal(words, distances.argmin(-1))
    assert np.linalg.norm(vectors, axis=-1) == pytest.approx(1.0)


def test_words_follow_the_mean_of_what_chose_them() -> None:
    torch.manual_seed(0)
    book = Codebook(3, 4).double()
    book.share.fill_(1 / 3)  # none is idle
    vectors = F.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1)
    chosen, before = torch.tensor([0, 0, 1, 1, 1, 0]), book.words.numpy().copy()
    book.follow(vectors, chosen)
    for word in (0, 1):
        mean = vectors[chosen == word].sum(0).numpy()
        moved = 0.97 * before[word] + 0.03 * mean / np.linalg.norm(mean)
        assert book.words[word].numpy() == pytest.approx(moved / np.linalg.norm(moved))
    assert book.words[2].numpy() == pytest.approx(before[2])
    assert book.share.tolist() == pytest.approx([0.97 / 3 + 0.03 / 2, 0.97 / 3 + 0.03 / 2, 0.97 / 3])


def test_an_idle_word_begins_anew_at_a_vector_of_the_batch() -> None:
    book = Codebook(4, 5)
    book.share.copy_(torch.tensor([0.5, 0.5, 0.4, 0.001]))
    vectors = F.normalize(torch.randn(7, 5), dim=1)
    book.follow(vectors, torch.tensor([0, 0, 0, 1, 1, 2, 2]))
    assert any(torch.equal(book.words[3], vector) for vector in vectors)
    assert book.share[3] == 1 / 4


def test_the_loss_is_of_pixels_and_of_the_distance_to_the_word() -> None:
    """Equation 3; the gradient passes the words unchanged, so the encoder's is that of a decoder fed with them."""
    tokenizer = make().double()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    for parameter in tokenizer.learnt():
        parameter.requires_grad_(True)
    vectors = tokenizer._encode(images)
    words = tokenizer.codebook.words[tokenizer(images, (4, 4))]
    fed = words.detach().clone().requires_grad_(True)
    pixels = (tokenizer.decoder(fed.movedim(-1, 1)) - images).square().mean()
    near = 0.25 * (vectors - words.detach()).square().sum(-1).mean()
    loss = tokenizer.fit_loss(images, (4, 4))
    assert loss.item() == pytest.approx((pixels + near).item())
    first = tokenizer.encoder[0].weight
    (into,) = torch.autograd.grad(pixels, fed)
    (expected,) = torch.autograd.grad([vectors, near], first, [into, None])
    (found,) = torch.autograd.grad(loss, first)
    torch.testing.assert_close(found, expected)


def test_fitting_draws_the_images_and_uses_the_words() -> None:
    tokenizer = make(codes=16)
    generator = torch.Generator().manual_seed(0)
    flat = torch.rand(64, 3, 4, 4, generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3)
    images = (flat - 0.5) / 0.25
    for parameter in tokenizer.learnt():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(tokenizer.learnt(), lr=3e-3)
    losses = []
    for _ in range(80):
        loss = tokenizer.fit_loss(images, (4, 4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * images.var().item()
    assert len(tokenizer(images, (4, 4)).unique()) >= 12
    drawn = tokenizer.picture(images, (4, 4))
    assert drawn is not None
    assert (drawn - flat).abs().mean() < 0.2
    assert (drawn.min() >= 0) & (drawn.max() <= 1)


@pytest.mark.parametrize(("stride", "cell"), [(1, 1), (4, 4), (6, 4), (8, 8), (16, 8), (32, 8)])
def test_any_stride_gives_a_word_a_patch(stride: int, cell: int) -> None:
    tokenizer = make(stride=stride)
    assert tokenizer.cell == cell
    assert tokenizer(torch.randn(2, 3, 3 * stride, 2 * stride), (3, 2)).shape == (2, 3, 2)


def test_a_teacher_sees_its_own_colours_and_size_and_is_left_alone() -> None:
    args = {"depth": 1, "embed_dim": 24, "num_heads": 2}
    teacher = create_backbone("vit_tiny_patch16_224", image_size=32, model_args=args)
    tokenizer = make(stride=8, teacher=teacher)
    images = torch.randn(2, 3, 16, 16)
    seen: list[torch.Tensor] = []
    teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for parameter in tokenizer.learnt():
        parameter.requires_grad_(True)
    tokenizer.fit_loss(images, (2, 2)).backward()
    pixels = F.interpolate((images * 0.25 + 0.5).clamp(0, 1), (32, 32), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(colour).view(3, 1, 1) for colour in (teacher.info.mean, teacher.info.std))
    torch.testing.assert_close(seen[0], (pixels - mean) / std)
    assert all(p.grad is None for p in teacher.parameters())
    assert tokenizer.train().teacher is teacher
    assert not teacher.training
    assert tokenizer.picture(images, (2, 2)) is None


def test_it_is_frozen_but_for_fitting() -> None:
    tokenizer = make()
    assert not any(p.requires_grad for p in tokenizer.parameters())
    assert not tokenizer.train().training
