"""Composite backbones: nothing changes at first, then what is fed is what the paper says, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from ssl_vit.backbones import create_backbone
from ssl_vit.backbones.composite import AUXILIARY, CompositeBackbone, Link, composite_of, entries
from ssl_vit.errors import UserError

SIZE = 64
TINY = {
    "resnet18": {"channels": (16, 32, 64, 128)},
    "vit_tiny_patch16_224": {"embed_dim": 48, "depth": 2, "num_heads": 3},
    "swin_tiny_patch4_window7_224": {
        "embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 4,
    },
    "pgt_tiny": {"embed_dim": 16, "depths": (1, 1, 1, 1), "heads": (1, 1, 2, 2)},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 40)},
}  # fmt: skip


def single(name):
    torch.manual_seed(0)
    sized = SIZE if name.startswith(("vit", "swin")) else None
    return create_backbone(name, image_size=sized, model_args=TINY[name])


def images():
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_at_first_the_lead_is_the_single_network_to_the_bit(name, training):
    backbone = single(name).train(training)
    composite = CompositeBackbone(copy.deepcopy(backbone), 3).train(training)
    torch.manual_seed(0)
    expected = backbone.pyramid(images())
    for wanted, found in zip(expected, composite.pyramid(images()), strict=True):
        assert torch.equal(wanted, found)
    assert [stage.channels for stage in composite.info.stages] == [map_.shape[1] for map_ in expected]


@pytest.mark.parametrize("shared", [1, 2])
@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "pgt_tiny"])
def test_shared_stages_are_computed_once(name, shared):
    backbone = single(name).eval()
    composite = CompositeBackbone(copy.deepcopy(backbone), 2, shared).eval()
    whole = CompositeBackbone(copy.deepcopy(backbone), 2).eval()
    for wanted, found in zip(backbone.pyramid(images()), composite.pyramid(images()), strict=True):
        assert torch.equal(wanted, found)
    first, lead = composite.model.networks
    assert sum(p.numel() for p in composite.parameters()) < sum(p.numel() for p in whole.parameters())
    modules = composite.model.shared
    calls = []
    for name_ in modules:
        first.get_submodule(name_).register_forward_hook(lambda *_: calls.append(1))
        assert not list(lead.get_submodule(name_).parameters())
    composite.pyramid(images())
    assert len(calls) == len(modules) > 0
    assert composite.model.entries[shared].module not in modules


def stirred(module):
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for link in (each for each in module.modules() if isinstance(each, Link)):
            for value in link.parameters():
                value.copy_(0.3 * torch.randn(value.shape, generator=rng, dtype=torch.float64))
    return module


def test_what_is_fed_is_the_papers_sum():
    """A ResNet by hand: x_l + the sum over all coarser or equal stages of what they saw, through norm and 1 x 1."""
    backbone = single("resnet18").double().eval()
    composite = stirred(CompositeBackbone(copy.deepcopy(backbone), 2).double().eval())
    x = images().double()
    assisting, lead = composite.model.networks
    links = composite.model.links[0]
    with torch.inference_mode():
        found = composite.pyramid(x)
        stem = lambda net: net.maxpool(net.act1(net.bn1(net.conv1(x))))  # noqa: E731
        seen, y = [], stem(assisting)
        for layer in (assisting.layer1, assisting.layer2, assisting.layer3, assisting.layer4):
            y = layer(y)
            seen.append(y)
        y, wanted = stem(lead), []
        for level, layer in enumerate((lead.layer1, lead.layer2, lead.layer3, lead.layer4)):
            for link, source in zip(links[level], seen[level:], strict=True):
                conv, norm = link
                fed = torch.einsum("oi,bihw->bohw", conv.weight[:, :, 0, 0], source)
                fed = fed / (1 + norm.eps) ** 0.5 * norm.weight[:, None, None] + norm.bias[:, None, None]
                y = y + F.interpolate(fed, y.shape[-2:], mode="nearest")
            y = layer(y)
            wanted.append(y)
    for own, expected in zip(found[1:], wanted, strict=True):
        torch.testing.assert_close(own, expected, atol=1e-11, rtol=1e-11)
    assert not torch.allclose(found[-1], seen[-1])


def test_the_official_channels_are_fed():
    """Of the authors' ResNet-50: from 256, 512, 1024 and 2048 channels into 64, 256, 512 and 1024."""
    composite = CompositeBackbone(create_backbone("resnet50"), 2)
    shapes = [[tuple(link[0].weight.shape[:2]) for link in links] for links in composite.model.links[0]]
    widths = (256, 512, 1024, 2048)
    assert shapes == [[(into, width) for width in widths[i:]] for i, into in enumerate((64, 256, 512, 1024))]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "pgt_tiny"])
def test_every_layout_is_fed_and_learns(name):
    composite = stirred(CompositeBackbone(single(name), 2).double()).float()
    before = composite.pyramid(images())[-1]
    before.sum().backward()
    assert all(link[0].weight.grad.abs().sum() > 0 for link in composite.modules() if isinstance(link, Link))
    with torch.no_grad():
        for link in (each for each in composite.modules() if isinstance(each, Link)):
            link[1].weight.zero_()
            link[1].bias.zero_()
    assert not torch.equal(composite.pyramid(images())[-1], before)


def test_the_maps_of_those_that_assist_are_kept_for_their_loss():
    composite = CompositeBackbone(single("resnet18"), 2).train()
    lead = composite.pyramid(images())
    inside = composite_of(composite)
    assert inside is composite.model
    with inside.instead(0):
        kept = composite.pyramid(torch.zeros(0))
    assert [map_.shape for map_ in kept] == [map_.shape for map_ in lead]
    assert kept[-1].requires_grad
    inside.forget()
    assert composite_of(single("resnet18").model) is None
    assert AUXILIARY == 0.5


def test_a_network_without_stages_to_feed_is_refused():
    backbone = single("resnet18")
    backbone.model.feature_info = [{**each, "module": "nowhere"} for each in backbone.model.feature_info]
    with pytest.raises(UserError, match="can't be told where its stages begin"):
        entries(backbone)
    with pytest.raises(UserError, match="--composite-shared 4: resnet18 has 4 stages, of which one is left"):
        CompositeBackbone(single("resnet18"), 2, 4)
