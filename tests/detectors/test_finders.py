"""Detectors as the loop sees them: boxes on canvases that the image doesn't fill, on backbones of every kind."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import get_args

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import box_iou

from ssl_vit.backbones import create_backbone
from ssl_vit.data.detection import Scene
from ssl_vit.detectors.build import build_finder
from ssl_vit.detectors.detector import Detector, Predictions, best
from ssl_vit.detectors.detr import DETR
from ssl_vit.detectors.finder import SetFinder
from ssl_vit.detectors.fpn import BackboneWithFPN
from ssl_vit.detectors.networks import network_class
from ssl_vit.detectors.simple_pyramid import SimplePyramid
from ssl_vit.detectors.table import DETECTORS, DetectorName, PretrainableName

SIZE = 64
TINY = {
    "resnet18": {"channels": (16, 32, 64, 128)},
    "vit_tiny_patch16_224": {"embed_dim": 48, "depth": 2, "num_heads": 3},
}


def backbone(name):
    torch.manual_seed(0)
    return create_backbone(name, image_size=SIZE if name.startswith("vit") else None, model_args=TINY[name])


def scenes(extent=(48, 64)):
    """Two canvases; the image is grey, and each object has a colour and a class of its own."""
    found = []
    for boxes in ([[6, 6, 30, 26], [34, 20, 60, 44]], [[20, 8, 50, 40]]):
        canvas = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
        canvas[:, : extent[0], : extent[1]] = 90
        masks = torch.zeros(len(boxes), SIZE, SIZE, dtype=torch.bool)
        for label, (left, top, right, bottom) in enumerate(boxes):
            canvas[label, top:bottom, left:right] = 250
            masks[label, top:bottom, left:right] = True
        labels = torch.arange(len(boxes))
        found.append(Scene(0, canvas, extent, torch.tensor(boxes).float(), labels, masks, (1.0, 1.0), []))
    return found


def test_the_table_has_every_name_that_a_configuration_takes():
    assert tuple(DETECTORS) == get_args(DetectorName)
    pretrainable = [name for name, entry in DETECTORS.items() if entry.network]
    assert pretrainable == list(get_args(PretrainableName))
    for name in pretrainable:
        network = network_class(name)
        official = inspect.signature(network).parameters
        assert network.name == name
        assert (official["queries"].default, official["hidden"].default) == DETECTORS[name][2:]


def test_the_page_on_detection_names_them_all():
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert [name for name in DETECTORS if f"`{name}`" not in page] == []


@pytest.mark.parametrize(
    ("name", "trunk"),
    [
        ("faster_rcnn", "vit_tiny_patch16_224"),
        pytest.param("retinanet", "resnet18", marks=pytest.mark.slow),
        pytest.param("mask_rcnn", "resnet18", marks=pytest.mark.slow),
    ],
)
def test_finds_the_objects_that_it_learnt_by_heart(name, trunk):
    finder, seen = build_finder(name, backbone(trunk), 2, SIZE).train(), scenes()
    optimizer = torch.optim.AdamW(finder.parameters(), 2e-3)
    for _ in range(45):
        loss = sum(finder.losses(seen).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(finder.parameters(), 1.0)
        optimizer.step()
    finder.train()  # the norms' running statistics are far behind after so few steps
    for module in finder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        finder.losses(seen)
        found = finder.eval().find(seen)
    for scene, one in zip(seen, found, strict=True):
        for box, label, mask in zip(scene.boxes, scene.labels, scene.masks, strict=True):
            of_class = one.labels == label
            best = one.scores[of_class].argmax()
            assert box_iou(box[None], one.boxes[of_class][best][None]).item() > 0.6
            if name == "mask_rcnn":
                outline, true = one.masks[of_class][best], mask[: scene.extent[0], : scene.extent[1]]
                assert (outline & true).sum() / (outline | true).sum() > 0.6
        assert (one.scores.diff() <= 0).all()
        assert one.boxes[:, 2].max() <= scene.extent[1]
        assert one.boxes[:, 3].max() <= scene.extent[0]


class Knowing(Detector):
    """Says the boxes of `scenes` by heart, and notes what it was shown."""

    focal = False
    num_classes = 2

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(1, 1)

    def forward(self, images, padding=None):
        self.shown = images, padding
        width, height = 64, 48
        corners = torch.tensor([[[6, 6, 30, 26], [34, 20, 60, 44.0]], [[20, 8, 50, 40], [0, 0, 2, 2]]])
        shares = corners / torch.tensor([width, height, width, height])
        boxes = torch.cat([(shares[..., :2] + shares[..., 2:]) / 2, shares[..., 2:] - shares[..., :2]], -1)
        logits = torch.full((2, 2, 3), -20.0)
        logits[0, 0, 0] = logits[0, 1, 1] = logits[1, 0, 0] = logits[1, 1, 2] = 20.0
        return Predictions(logits, boxes)


def test_boxes_of_sets_are_shares_of_the_image_not_of_the_canvas():
    seen = scenes()
    finder = SetFinder(Knowing(), backbone("resnet18").info)
    assert sum(finder.losses(seen).values()).item() < 1e-4
    images, padding = finder.detector.shown
    assert padding[:, 48:].all()
    assert not padding[:, :48].any()
    assert images[:, :, 48:].abs().max() == 0 < images[:, :, :48].abs().min()
    found = finder.find(seen)
    torch.testing.assert_close(found[0].boxes, seen[0].boxes)
    assert found[0].labels.tolist() == [0, 1]
    torch.testing.assert_close(found[1].boxes[0], seen[1].boxes[0])


@pytest.mark.parametrize("name", ["deformable_detr", "detr"])
def test_norms_learn_where_a_network_may_begin_without_weights(name):
    finder, seen = build_finder(name, backbone("resnet18"), 2, SIZE).train(), scenes()
    norm = finder.trunk().model.bn1
    before = norm.running_mean.clone()
    sum(finder.losses(seen).values()).backward()
    assert not torch.equal(norm.running_mean, before)
    assert norm.weight.grad is not None


def test_the_trunk_is_the_backbone():
    for name in DETECTORS:
        trunk = backbone("vit_tiny_patch16_224")
        own = {id(p) for p in trunk.parameters()}
        found = {id(p) for p in build_finder(name, trunk, 2, SIZE).trunk().parameters()}
        assert len(own & found) >= len(own) - 1  # YOLOS has positions of its own, and tokens
        assert len(found - own) == (2 if name == "yolos" else 0)


def test_coarser_maps_of_the_simple_pyramid_are_pooled():
    torch.manual_seed(0)
    pyramid = SimplePyramid(8, 16, (4, 8, 16, 32), 8)
    same, coarser = pyramid.levels[2], pyramid.levels[3]
    coarser.load_state_dict({f"{int(key[0]) + 1}{key[1:]}": value for key, value in same.state_dict().items()})
    map_ = torch.randn(2, 8, 6, 4)
    pooled = map_.unflatten(3, (2, 2)).unflatten(2, (3, 2)).amax((3, 5))
    maps = pyramid({"0": map_})
    torch.testing.assert_close(maps["3"], same(pooled))
    torch.testing.assert_close(maps["2"], same(map_))
    assert maps["0"].shape == (2, 8, 24, 16)


def test_finer_maps_of_the_simple_pyramid_keep_every_cell_in_its_place():
    """Transposed convolutions of stride 2 with kernels of 2: a cell becomes 2 x 2 cells that know nothing else."""
    torch.manual_seed(0)
    level = SimplePyramid(8, 16, (4, 8, 16, 32), 8).levels[0][:4]  # up to the convolution of 1 x 1
    map_ = torch.zeros(1, 8, 3, 3)
    changed = map_.clone()
    changed[0, :, 1, 2] = 1.0
    differs = (level(changed) - level(map_)).abs().sum((0, 1)) > 1e-6
    assert differs[4:8, 8:12].all()
    assert differs.sum() == 16


def test_patches_that_are_no_power_of_two_are_resized():
    """torchvision takes the stride of a map for the nearest power of 2."""
    torch.manual_seed(0)
    trunk = create_backbone(
        "vit_tiny_patch16_224", image_size=56, model_args={**TINY["vit_tiny_patch16_224"], "patch_size": 14}
    )
    body = BackboneWithFPN(trunk, 8)
    assert body.strides == (4, 8, 16, 32, 64)
    assert [m.shape[-1] for m in body(torch.zeros(1, 3, 224, 224)).values()] == [56, 28, 14, 7, 4]


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet", "mask_rcnn"])
def test_large_canvases_have_what_torchvision_has(name):
    """Widths, anchors and regions of its own detectors with a feature pyramid network."""
    ours = build_finder(name, backbone("resnet18"), 2, 416).model
    theirs = getattr(torchvision.models.detection, f"{name.replace('_', '')}_resnet50_fpn")(
        weights=None, weights_backbone=None
    )
    anchors = [getattr(m, "anchor_generator", None) or m.rpn.anchor_generator for m in (ours, theirs)]
    assert anchors[0].aspect_ratios == anchors[1].aspect_ratios
    for own, other in zip(anchors[0].sizes, anchors[1].sizes, strict=True):
        assert own == pytest.approx(other, rel=0.02)
    expected, shapes = ({k: v.shape for k, v in m.state_dict().items() if ".body." not in k} for m in (theirs, ours))
    of_classes_or_backbone = (
        "predictor.cls",
        "predictor.bbox",
        "predictor.mask",
        "cls_logits",
        "fpn.inner",
        "fpn.extra",
    )
    same = {key for key in expected if not any(part in key for part in of_classes_or_backbone)}
    assert {key: shapes[key] for key in same} == {key: expected[key] for key in same}


def test_queries_look_at_the_image_alone_in_pixels_of_the_canvas():
    """Attention that knows nothing looks at every cell of the image in the same way."""
    torch.manual_seed(0)
    trunk = backbone("resnet18")
    finder = SetFinder(DETR(trunk, 2, queries=5, depth=2, dim=32, hidden=32), trunk.info).eval()
    torch.nn.init.zeros_(finder.detector.transformer.decoder.layers[-1].multihead_attn.in_proj_weight)
    seen = scenes(extent=(64, 32))
    looked, found = finder.look(seen), finder.find(seen)
    expected = [[16.0, 16.0, 0.5], [48.0, 16.0, 0.0], [16.0, 48.0, 0.5], [48.0, 48.0, 0.0]]
    for one, same in zip(looked, found, strict=True):
        torch.testing.assert_close(one.looks, torch.tensor(expected).expand(5, -1, -1))
        torch.testing.assert_close(one.boxes, same.boxes)


def test_places_go_with_the_boxes_of_their_queries():
    logits = torch.tensor([[[0.1, 3.0], [2.0, -1.0], [-5.0, 1.0]]])
    looks = torch.arange(3.0)[None, :, None, None].expand(1, 3, 4, 3)
    [found] = best(Predictions(logits, torch.rand(1, 3, 4)), torch.tensor([[9, 9]]), focal=True, count=4, looks=looks)
    assert found.looks[:, 0, 0].tolist() == [0, 1, 2, 0]
