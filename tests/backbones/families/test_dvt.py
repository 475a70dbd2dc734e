"""DVT's cascade: what is reused is resized, every size passes, and images leave where a network is sure of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from ssl_vit.backbones.families import dvt
from tests.backbones.families.compiled import check_compiled


def build(**more: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model("dvt_t2t_vit_12", **{"depth": 2, "embed_dim": 64, "num_heads": 2, **more})
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not name.endswith(".w"):
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.parametrize("sizes", [((7, 7), (10, 10)), ((10, 10), (14, 14)), ((3, 5), (4, 6)), ((1, 1), (2, 2))])
def test_maps_are_doubled_and_averaged(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    source, target = sizes
    x = torch.randn(2, 3, 1 + math.prod(source), dtype=torch.float64)
    maps = F.interpolate(x[..., 1:].reshape(2, 3, *source), scale_factor=2, mode="nearest")
    expected = torch.cat([x[..., :1], F.adaptive_avg_pool2d(maps, target).flatten(2)], dim=-1)
    torch.testing.assert_close(dvt.resize(x, source, target), expected)


@pytest.mark.parametrize("size", [(32, 32), (96, 96), (97, 131), (224, 160)])
def test_any_size(size: tuple[int, int]) -> None:
    model = build()
    images = torch.randn(1, 3, *size)
    with torch.inference_mode():
        grids = [network.patch_embed.dynamic_feat_size(size) for network in model.networks()]
        tokens, (*_, last) = model.forward_intermediates(images)
        logits = model.exits(images)
        assert torch.equal(logits[-1], model(images))
    assert grids == [tuple(math.ceil(side / stride) for side in size) for stride in (32, 24, 16)]
    assert last.shape[2:] == grids[-1]
    assert tokens.shape == (1, 1 + math.prod(grids[-1]), 64)


def test_without_classes_every_weight_is_used() -> None:
    model = timm.create_model("dvt_t2t_vit_12", depth=2, num_classes=0)
    (model.forward_features(torch.randn(2, 3, 64, 64)) * torch.randn(256)).sum().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    unused = [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
    assert all(name.endswith("relation.2.bias") for name in unused), "which softmax takes away again"
    model.reset_classifier(7)
    assert [logits.shape for logits in model.exits(torch.randn(2, 3, 64, 64))] == [(2, 7)] * 3


def test_images_leave_where_a_network_is_sure() -> None:
    model = build(num_classes=5)
    images = torch.randn(6, 3, 64, 64)
    with torch.inference_mode():
        exits = torch.stack(model.exits(images))
    sure = exits.softmax(-1).amax(-1)
    least = (sure[0].median().item(), sure[1].median().item())
    logits, numbers = model.answer(images, least)
    expected = torch.where(sure[0] >= least[0], 0, torch.where(sure[1] >= least[1], 1, 2))
    assert torch.equal(numbers, expected)
    assert len(set(numbers.tolist())) > 1
    torch.testing.assert_close(logits, exits[expected, torch.arange(6)], rtol=1e-4, atol=1e-5)
    for bound, number in ((0.0, 0), (1.1, 2)):
        logits, numbers = model.answer(images, (bound, bound))
        assert numbers.tolist() == [number] * 6
        torch.testing.assert_close(logits, exits[number], rtol=1e-4, atol=1e-5)


def test_features_and_relations_are_reused() -> None:
    """Another image in the first network's eyes changes what the third one sees."""
    model = build()
    images, other = torch.randn(2, 1, 3, 64, 64)
    with torch.inference_mode():
        found, changed = (model.earlier[0].find(each, None) for each in (images, other))
        plain = model.find(images, found).tokens
        for part in ("tokens", "relations"):
            mixed = found._replace(**{part: getattr(changed, part)})
            assert not torch.allclose(model.find(images, mixed).tokens, plain, atol=1e-4)


@pytest.mark.slow  # seconds, and a break costs speed alone
def test_compiles_as_one_graph() -> None:
    check_compiled(build(num_classes=0), torch.randn(2, 3, 64, 64))
