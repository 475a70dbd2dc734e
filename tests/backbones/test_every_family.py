"""The contract, for one model of every family, against timm's own model with the same weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from ssl_vit.backbones import create_backbone
from ssl_vit.backbones.backbone import Features
from ssl_vit.backbones.timm_adapter import TimmBackbone
from tests.families import COSTLY, cheapest

FAMILIES = sorted(cheapest())
# A last convolution or activation comes after the last level of forward_intermediates, which gives what it gives too.
OTHER_LAST_MAP = {
    *("efficientnet", "fastvit", "ghostnet", "hrnet", "mobilenetv5", "nfnet", "repghost", "rexnet", "xception_aligned"),
}
UNPADDED = {"inception_resnet_v2", "inception_v3", "inception_v4", "xception"}  # their maps lose cells at the border


@pytest.fixture(
    scope="module",
    params=[pytest.param(family, marks=[pytest.mark.slow] if family in COSTLY else []) for family in FAMILIES],
)
def backbone(request: pytest.FixtureRequest) -> TimmBackbone:
    name, kwargs = cheapest()[request.param]
    torch.manual_seed(0)
    made: TimmBackbone = create_backbone(name, **kwargs, masked=True).eval()
    return made


@pytest.fixture(scope="module")
def images(backbone: TimmBackbone) -> Tensor:
    return pictures(backbone.info.size)


@pytest.fixture(scope="module")
def seen(backbone: TimmBackbone, images: Tensor) -> Features:
    with torch.no_grad():
        features: Features = backbone(images)
        return features


def pictures(size: tuple[int, int]) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def test_table_covers_timm() -> None:
    theirs = {timm.models.model_entrypoint(name).__module__ for name in timm.list_models()}
    assert {module.rpartition(".")[2] for module in theirs} <= set(FAMILIES)


def test_pooled_and_its_gradients_are_timms(backbone: TimmBackbone, images: Tensor) -> None:
    plain: Any = timm.create_model(backbone.info.name, num_classes=0, **backbone.model_args).eval()
    plain.load_state_dict(backbone.model.state_dict(), strict=True)
    expected = plain.forward_head(plain.forward_features(images), pre_logits=True)
    pooled = backbone(images).pooled
    assert pooled.shape == (2, backbone.info.dim)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)
    expected.square().mean().backward()
    pooled.square().mean().backward()
    reached = {name for name, parameter in backbone.model.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, parameter in plain.named_parameters() if parameter.grad is not None}
    backbone.zero_grad()


@torch.no_grad()
def test_maps_agree_with_info(backbone: TimmBackbone, images: Tensor, seen: Features) -> None:
    info, maps = backbone.info, backbone.pyramid(images)
    assert seen.patches.shape[1] == info.patch_dim
    assert [level.shape[1] for level in maps] == [stage.channels for stage in info.stages]
    slack = 4 if info.family in UNPADDED else 1
    for level, stage in zip(maps, info.stages, strict=True):
        for side, cells in zip(info.size, level.shape[2:], strict=True):
            assert abs(side / stage.stride - cells) <= slack
    assert info.parameters == sum(parameter.numel() for parameter in backbone.model.parameters())


@torch.no_grad()
def test_patches_are_in_their_place(backbone: TimmBackbone, images: Tensor, seen: Features) -> None:
    """Against timm's own last level, before or after the final norm; or what follows it."""
    patches = seen.patches
    if backbone.info.family in OTHER_LAST_MAP:
        final, levels = backbone.model.forward_intermediates(images)
        assert not (levels[-1].shape == patches.shape and torch.allclose(patches, levels[-1], rtol=1e-4, atol=1e-5))
        torch.testing.assert_close(patches, final, rtol=1e-4, atol=1e-5)
        return
    raw = backbone.model.forward_intermediates(images, indices=1, intermediates_only=True)[-1]
    same = raw.shape == patches.shape and torch.allclose(patches, raw, rtol=1e-4, atol=1e-5)
    if not same:
        normed = backbone.model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[-1]
        torch.testing.assert_close(patches, normed, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_other_sizes(backbone: TimmBackbone, seen: Features) -> None:
    info = backbone.info
    if info.any_size:
        cell = info.size[0] / seen.patches.shape[2]
        height = info.size[0] + info.multiple * math.ceil(info.size[0] / 2 / info.multiple)
        width = info.size[1] + info.multiple * math.ceil(cell / info.multiple)
        other = pictures((height, width))
        features = backbone(other)
        rows, columns = features.patches.shape[2:]
        assert abs(height / cell - rows) <= 1.5
        assert abs(width / cell - columns) <= 1.5
        assert features.pooled.isfinite().all()
        assert len(backbone.pyramid(other)) == len(info.stages)
        return
    try:
        other = backbone(pictures((info.size[0] + 64, info.size[1] + 64)))
    except (AssertionError, RuntimeError, ValueError, IndexError):
        return
    assert other.patches.shape == seen.patches.shape  # it resizes images to its own size


@torch.no_grad()
def test_masks_hide(backbone: TimmBackbone, images: Tensor) -> None:
    """Masked patches change what comes out, and what was under them doesn't; also where cells are cut at the border."""
    info = backbone.info
    ragged = [pictures((info.size[0] + info.multiple, info.size[1] + info.multiple))] if info.any_size else []
    for shown in (images, *ragged):
        seen = backbone(shown)
        rows, columns = seen.patches.shape[2:]
        mask = torch.zeros(2, rows, columns, dtype=torch.bool)
        mask[:, 0, columns - 1] = True
        hidden = backbone(shown, mask)
        assert not torch.equal(hidden.pooled, seen.pooled)
        assert not torch.equal(hidden.patches, seen.patches)
        below, right = first_cell(backbone, shown.shape[2], rows), first_cell(backbone, shown.shape[3], columns)
        repainted = shown.clone()
        repainted[..., : math.floor(below), math.ceil((columns - 1) * right) :] = 5.0
        again = backbone(repainted, mask)
        torch.testing.assert_close(again.pooled, hidden.pooled, rtol=0, atol=0)
        torch.testing.assert_close(again.patches, hidden.patches, rtol=0, atol=0)


def first_cell(backbone: TimmBackbone, side: int, cells: int) -> float:
    """Pixels of a cell that isn't cut: the stride, or an equal part of the side for maps that have other cells."""
    stride: int = backbone.model.feature_info[-1]["reduction"]
    return stride if cells in (math.floor(side / stride), math.ceil(side / stride)) else side / cells
