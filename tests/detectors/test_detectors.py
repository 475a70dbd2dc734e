"""What the goldens don't see: images of different sizes in a batch, several backbones, new classes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ssl_vit.backbones import create_backbone
from ssl_vit.detectors import deformable_detr, detr
from ssl_vit.detectors.deformable_attention import sample
from ssl_vit.detectors.deformable_detr import DeformableDETR
from ssl_vit.detectors.detr import DETR
from ssl_vit.detectors.losses import GroundTruth, SetLoss
from ssl_vit.detectors.yolos import YOLOS
from ssl_vit.errors import UserError

TINY_VIT = {"embed_dim": 48, "depth": 2, "num_heads": 3}


def backbone(name="resnet18", **args):
    torch.manual_seed(0)
    return create_backbone(name, image_size=64 if name.startswith("vit") else None, model_args=args)


def small(kind, vit=False, classes=3):
    torch.manual_seed(0)
    trunk = backbone("vit_tiny_patch16_224", **TINY_VIT) if vit or kind == "yolos" else backbone()
    if kind == "detr":
        return DETR(trunk, classes, queries=9, depth=2, hidden=64)
    if kind == "yolos":
        return YOLOS(trunk, classes, queries=9)
    return DeformableDETR(trunk, classes, queries=9, depth=2, hidden=64)


@pytest.mark.parametrize("kind", ["detr", pytest.param("deformable", marks=pytest.mark.slow), "yolos"])
@pytest.mark.parametrize("vit", [False, True])
def test_learns_one_scene_by_heart(kind, vit):
    model = small(kind, vit)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    targets = [
        GroundTruth(torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.3, 0.5]]), torch.tensor([0, 2])),
        GroundTruth(torch.tensor([[0.5, 0.5, 0.8, 0.4]]), torch.tensor([1])),
    ]
    loss, optimizer = SetLoss.of(model.focal), torch.optim.AdamW(model.parameters(), 5e-4)
    history = []
    for _ in range(25):
        parts = loss(model(images), targets)
        optimizer.zero_grad()
        sum(parts.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(parts["l1"].item())
    assert history[-1] < 0.6 * history[0]


@pytest.mark.parametrize("kind", ["detr", "deformable", "yolos"])
def test_boxes_are_not_rounded_to_bfloat16(kind):
    detector, images = small(kind, vit=kind == "yolos").eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        boxes = detector(images).boxes
    assert boxes.dtype == torch.float32
    assert (boxes != boxes.bfloat16()).any()


def _padded(map_, bottom, right):
    """A map with rubbish beside it, and the mask that says so."""
    whole = F.pad(map_, (0, right, 0, bottom), value=7.0)
    padding = torch.ones(len(map_), *whole.shape[-2:], dtype=torch.bool)
    padding[:, : map_.shape[-2], : map_.shape[-1]] = False
    return whole, padding


def test_detr_does_not_see_what_is_beside_the_image():
    torch.manual_seed(0)
    model = detr.Transformer(32, 4, 64, depth=2).eval()
    map_, queries = torch.randn(2, 32, 5, 6), torch.randn(4, 32)
    alone = model(map_, torch.zeros(2, 5, 6, dtype=torch.bool), queries)
    for a, b in zip(alone, model(*_padded(map_, 2, 3), queries), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_deformable_detr_does_not_see_what_is_beside_the_image():
    torch.manual_seed(0)
    model = deformable_detr.DeformableTransformer(32, 2, 64, depth=2).eval()
    for module in model.modules():  # offsets that depend on the query, and points that leave the map
        if isinstance(module, deformable_detr.DeformableAttention):
            torch.nn.init.normal_(module.sampling_offsets.weight, std=0.5)
            torch.nn.init.normal_(module.attention_weights.weight)
    maps, queries = [torch.randn(2, 32, 8, 6), torch.randn(2, 32, 4, 3)], torch.randn(4, 64)
    free = [torch.zeros(2, *m.shape[-2:], dtype=torch.bool) for m in maps]
    alone, _ = model(maps, free, queries)
    wide = [_padded(maps[0], 4, 2), _padded(maps[1], 2, 1)]
    padded, _ = model([m for m, _ in wide], [p for _, p in wide], queries)
    for a, b in zip(alone, padded, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_sampling_is_bilinear_interpolation():
    """Against four neighbours written out, in float64, points in and out of the map."""
    rng = torch.Generator().manual_seed(0)
    sizes, heads, d, points = [(3, 5), (2, 2)], 2, 4, 3
    value = torch.randn(1, 19, heads, d, generator=rng, dtype=torch.float64)
    places = 1.4 * torch.rand(1, 6, heads, 2, points, 2, generator=rng, dtype=torch.float64) - 0.2
    weights = torch.rand(1, 6, heads, 2, points, generator=rng, dtype=torch.float64)
    expected = torch.zeros(6, heads, d, dtype=torch.float64)
    for q in range(6):
        for h in range(heads):
            for level, (height, width) in enumerate(sizes):
                start = 15 * level
                for p in range(points):
                    x, y = (places[0, q, h, level, p] * torch.tensor([width, height]) - 0.5).tolist()
                    for i in range(height):
                        for j in range(width):
                            share = max(0, 1 - abs(x - j)) * max(0, 1 - abs(y - i))
                            expected[q, h] += weights[0, q, h, level, p] * share * value[0, start + i * width + j, h]
    torch.testing.assert_close(sample(value, sizes, places, weights)[0], expected.flatten(1))


@pytest.mark.parametrize("kind", ["detr", "deformable", "yolos"])
def test_new_classes_keep_everything_else(kind):
    model = small(kind, classes=3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.forget_classes(11)
    after = model.state_dict()
    changed = {k for k in after if after[k].shape != before[k].shape or not torch.equal(after[k], before[k])}
    assert all(name.startswith("class_embed") for name in changed)
    assert model(torch.randn(1, 3, 64, 64)).logits.shape[-1] == (11 if kind == "deformable" else 12)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("transformer.enc_output.weight", "two stages"),
        ("transformer.pos_trans.bias", "two stages"),
        ("transformer.decoder.bbox_embed.0.layers.0.weight", "refines boxes"),
    ],
)
def test_other_deformable_detrs_are_refused_by_name(name, kind):
    """The names are those that fundamentalvision/Deformable-DETR saves with either option."""
    weights = small("deformable").state_dict() | {name: torch.zeros(1)}
    with pytest.raises(UserError, match=kind):
        deformable_detr.load_official(weights)


@pytest.mark.parametrize("kind", ["detr", "deformable"])
def test_batch_norm_keeps_its_statistics(kind):
    model = small(kind).train()
    before = model.backbone.model.bn1.running_mean.clone()
    model(torch.randn(2, 3, 64, 64)).boxes.sum().backward()
    assert torch.equal(model.backbone.model.bn1.running_mean, before)
    assert model.backbone.model.bn1.weight.grad is None
    assert model.backbone.model.conv1.weight.grad is not None


def test_yolos_takes_other_sizes_and_refuses_other_networks():
    model = small("yolos").eval()
    assert model(torch.randn(1, 3, 96, 48)).boxes.shape == (1, 9, 4)
    with pytest.raises(UserError, match="resnet18: YOLOS is made of a plain ViT"):
        YOLOS(backbone(), 3)


def test_plain_vit_gives_deformable_detr_four_maps():
    model = small("deformable", vit=True)
    assert [tuple(m.shape[-2:]) for m in model.maps(torch.randn(1, 3, 64, 64))] == [(4, 4), (2, 2), (1, 1), (1, 1)]
