"""Segmenters as the loop sees them: canvases that the image doesn't fill, on backbones of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from ssl_vit.backbones import create_backbone
from ssl_vit.data.segment_scenes import SegmentScene
from ssl_vit.segmenters.build import build_segmenter
from ssl_vit.segmenters.maskformer import MaskFormer
from ssl_vit.segmenters.segmenter import enlarge, likeliest, planes_of
from ssl_vit.segmenters.table import SEGMENTERS, SegmenterName

SIZE = 64
TINY = {
    "resnet18": {"channels": (16, 32, 64, 128)},
    "vit_tiny_patch16_224": {"embed_dim": 48, "depth": 2, "num_heads": 3},
}


def backbone(name):
    torch.manual_seed(0)
    return create_backbone(name, image_size=SIZE if name.startswith("vit") else None, model_args=TINY[name])


def scenes(extent=(48, 64)):
    """Two canvases with one and two coloured things on grey, whose originals are twice as large."""
    found = []
    for boxes in ([[6, 6, 30, 26], [34, 20, 60, 44]], [[20, 8, 50, 40]]):
        canvas = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
        segments = torch.full((SIZE, SIZE), -1, dtype=torch.int16)
        canvas[:, : extent[0], : extent[1]], segments[: extent[0], : extent[1]] = 90, 0
        for label, (left, top, right, bottom) in enumerate(boxes):
            canvas[label, top:bottom, left:right] = 250
            segments[top:bottom, left:right] = label + 1
        size = (2 * extent[0], 2 * extent[1])
        found.append(SegmentScene(0, canvas, extent, segments, torch.arange(len(boxes) + 1), size, None, []))
    return found


def test_the_table_has_every_name_and_the_page_names_them_all():
    assert tuple(SEGMENTERS) == get_args(SegmenterName)
    page = (Path(__file__).parents[2] / "docs" / "segmentation.md").read_text(encoding="utf-8")
    assert [name for name in SEGMENTERS if f"`{name}`" not in page] == []


@pytest.mark.parametrize(
    ("name", "trunk", "steps"),
    [
        pytest.param("upernet", "resnet18", 40, marks=pytest.mark.slow),
        ("fpt", "vit_tiny_patch16_224", 40),
    ],
)
def test_finds_what_it_learnt_by_heart(name, trunk, steps):
    segmenter, seen = build_segmenter(name, backbone(trunk), (False, True, True), SIZE).train(), scenes()
    optimizer = torch.optim.AdamW(segmenter.parameters(), 1e-3)
    for step in range(steps):
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 10) * (1 - step / steps)
        loss = torch.stack(list(segmenter.losses(seen).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in segmenter.trunk().parameters() if parameter.numel() > 9999)
    with torch.inference_mode():
        found = segmenter.eval().segment(seen)
    for own, scene in zip(found, seen, strict=True):
        assert own.classes.shape == scene.size
        wanted = scene.classes()[: scene.extent[0], : scene.extent[1]].repeat_interleave(2, 0).repeat_interleave(2, 1)
        assert (own.classes == wanted).float().mean() > 0.9


@pytest.mark.slow
def test_maskformer_finds_what_it_learnt_by_heart():
    torch.manual_seed(0)
    small = {"queries": 10, "depth": 2, "dim": 32, "hidden": 64}
    segmenter, seen = MaskFormer(backbone("resnet18"), (False, True, True), **small).train(), scenes()
    optimizer = torch.optim.AdamW(segmenter.parameters(), 2e-3, weight_decay=0.05)
    for step in range(120):
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 12) * (1 - step / 120)
        loss = torch.stack(list(segmenter.losses(seen).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(segmenter.parameters(), 1.0)
        optimizer.step()
    with torch.inference_mode():
        found = segmenter.eval().segment(seen)
    for own, scene in zip(found, seen, strict=True):
        wanted = scene.classes()[: scene.extent[0], : scene.extent[1]].repeat_interleave(2, 0).repeat_interleave(2, 1)
        assert (own.classes == wanted).float().mean() > 0.9
        assert set(own.labels.tolist()) <= set(scene.labels.tolist())


def test_every_segmenter_stands_on_backbones_with_and_without_stages():
    for name in SEGMENTERS:
        for trunk in TINY:
            segmenter = build_segmenter(name, backbone(trunk), (False, True, True), SIZE)
            parts = segmenter.losses(scenes())
            assert all(torch.isfinite(part) for part in parts.values())
            assert segmenter.trunk() is not None


def test_planes_are_enlarged_to_the_image_without_the_canvas_beside_it():
    scene = scenes()[0]
    scores = torch.randn(4, 16, 16)
    wide = enlarge(enlarge(scores[None], (SIZE, SIZE))[..., :48, :], scene.size)[0]
    assert torch.equal(torch.stack(list(planes_of(scores, scene))), wide)
    assert torch.equal(likeliest(scores, scene), wide.argmax(0))


def test_what_lies_beside_an_image_is_not_seen():
    segmenter = build_segmenter("upernet", backbone("resnet18"), (False, True, True), SIZE).eval()
    first, other = scenes()[0], scenes()[0]
    other.image[:, 48:] = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 16, 64), np.uint8))
    with torch.inference_mode():
        found = segmenter.segment([first, other])
    assert torch.equal(found[0].classes, found[1].classes)
