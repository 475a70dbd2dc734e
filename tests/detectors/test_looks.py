"""Where queries look, in cases where that is known beforehand."""

from __future__ import annotations

import math

import torch

from ssl_vit.backbones import create_backbone
from ssl_vit.detectors.deformable_detr import DeformableDETR
from ssl_vit.detectors.detector import best
from ssl_vit.detectors.detr import DETR
from ssl_vit.detectors.looks import looks

ARGS = {"channels": (16, 32, 64, 128)}
SIZES = {"queries": 5, "depth": 2, "dim": 32, "hidden": 32}


def shown():
    """Two images of 96 x 64 pixels on a canvas of 96 x 128."""
    padding = torch.ones(2, 96, 128, dtype=torch.bool)
    padding[:, :, :64] = False
    return torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0)), padding


def test_detr_looks_at_all_of_the_image_where_its_attention_knows_nothing():
    torch.manual_seed(0)
    model = DETR(create_backbone("resnet18", model_args=ARGS), 3, **SIZES).eval()
    attention = model.transformer.decoder.layers[-1].multihead_attn
    torch.nn.init.zeros_(attention.in_proj_weight)
    images, padding = shown()
    predictions, places = looks(model, images, padding)
    assert places.shape == (2, 5, 12, 3)  # 3 x 4 cells
    x, y, weights = places.unbind(-1)
    torch.testing.assert_close(weights, (x < 0.5).float() / 6)
    assert sorted(set(y.flatten().tolist())) == [torch.tensor(row).item() for row in (0.5 / 3, 0.5, 2.5 / 3)]
    torch.testing.assert_close(predictions.logits, model(images, padding).logits)
    assert not attention._forward_hooks


def test_deformable_detr_looks_around_its_reference_points():
    """At first each of 8 heads looks in a direction of its own, 1 to 4 cells away, on each of 4 maps."""
    torch.manual_seed(0)
    model = DeformableDETR(create_backbone("resnet18", model_args=ARGS), 3, **SIZES).eval()
    images, _ = shown()
    padding = torch.zeros(2, 96, 128, dtype=torch.bool)
    predictions, places = looks(model, images, padding)
    reference = model.transformer.reference_points(model.query_embed.weight[:, :32]).sigmoid()
    expected = []
    for head in range(8):
        angle = head * math.pi / 4
        direction = torch.tensor([math.cos(angle), math.sin(angle)])
        direction = direction / direction.abs().max()
        for cells in ((16, 12), (8, 6), (4, 3), (2, 2)):
            expected += [reference + step * direction / torch.tensor(cells) for step in (1, 2, 3, 4)]
    torch.testing.assert_close(places[..., :2], torch.stack(expected, 1).expand(2, -1, -1, -1))
    torch.testing.assert_close(places[..., 2], torch.full((2, 5, 128), 1 / 128))
    found = best(predictions, torch.tensor([[96, 128]] * 2), focal=True, looks=places)
    query = predictions.logits[0].sigmoid().flatten().topk(15).indices // 3
    torch.testing.assert_close(found[0].looks, places[0][query])
