"""What is done for speed alone changes no result."""

from __future__ import annotations

import pytest
import torch

from ssl_vit.backbones import backbone_info, create_backbone
from ssl_vit.training.speed import wants_channels_last
from tests.families import cheapest


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet50", True), ("convnext_tiny", True), ("coatnet_0_rw_224", True), ("vit_tiny_patch16_224", False)],
)
def test_convolutions_get_images_pixel_by_pixel(name: str, expected: bool) -> None:
    assert wants_channels_last(backbone_info(name)) == expected


@pytest.mark.parametrize("family", ["resnet", "convnext", "efficientnet", "maxxvit", "cmt"])
def test_the_order_of_pixels_in_memory_changes_no_result(family: str) -> None:
    """Maps follow the images; gradients keep the order of the weights, which is that of every file."""
    name, kwargs = cheapest()[family]
    found = []
    for order in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        backbone = create_backbone(name, **kwargs).train().double()
        images = torch.randn(4, 3, 64, 64, dtype=torch.float64).to(memory_format=order)
        seen = backbone(images)
        assert family not in ("resnet", "efficientnet") or seen.patches.is_contiguous(memory_format=order)
        (seen.pooled.square().mean() + seen.patches.square().mean()).backward()
        found.append((seen, {key: p.grad for key, p in backbone.named_parameters() if p.grad is not None}))
    (plain, expected), (turned, gradients) = found
    torch.testing.assert_close(turned, plain, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(gradients, expected, rtol=1e-8, atol=1e-11)
    assert all(gradient.is_contiguous() for gradient in gradients.values())
