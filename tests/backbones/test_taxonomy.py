"""The places of attention and other mixers: every network of ours has one, every place has a network that works."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from timm.models import model_entrypoint

from ssl_vit.backbones import create_backbone, families, list_backbones
from ssl_vit.backbones.taxonomy import PLACES, places_of
from ssl_vit.cli import main

SHALLOW = {"depth": 1}
WORKING: dict[str, tuple[str, int, dict[str, Any]]] = {
    "full": ("vit_tiny_patch16_224", 32, SHALLOW),
    "sparse": ("cat_tiny", 64, {}),
    "linear": ("vit_tiny_performer_patch16_224", 32, SHALLOW),
    "prototype": ("vit_tiny_linformer_patch16_224", 32, SHALLOW),
    "low-rank": ("vit_tiny_nystrom_patch16_224", 32, SHALLOW),
    "prior": ("autoformer_tiny", 32, SHALLOW),
    "heads": ("rest_lite", 64, {}),
    "static": ("vip_s7", 56, {"depths": (1, 1), "dims": (48, 96), "shares": (6, 12)}),
    "dynamic": ("cotnet50", 64, {}),
    "shift": ("s2mlp_deep", 32, {"depth": 3, "embed_dim": 48}),
    "fourier": ("vit_tiny_fnet_patch16_224", 32, SHALLOW),
    "pooled": ("poolformer_s12", 64, {}),
}


def test_every_network_of_ours_has_a_place() -> None:
    ours = [row for row in list_backbones() if model_entrypoint(row.name).__module__.startswith(families.__name__)]
    assert len(ours) > 100
    assert [row.name for row in ours if not row.mixer] == []
    assert {place for row in list_backbones() for place in row.mixer} == set(PLACES)
    for row in ours:
        if row.kind == "mlp":
            assert not set(row.mixer) & {"full", "sparse", "linear", "prototype", "low-rank"}, row.name


@pytest.mark.parametrize("place", PLACES)
def test_every_place_has_a_member_that_works(place: str) -> None:
    """Where tokens are mixed, what one of them is changes what the others become."""
    name, size, args = WORKING[place]
    assert place in places_of(name)
    torch.manual_seed(0)
    backbone = create_backbone(name, image_size=size, model_args=args).eval()
    images = torch.randn(1, 3, size, size)
    other = images.clone()
    other[..., : size // 2, : size // 2] += 1.0
    with torch.inference_mode():
        before, after = backbone(images).patches, backbone(other).patches
    assert before.isfinite().all()
    assert not torch.equal(before[..., -1, -1], after[..., -1, -1])


def test_the_list_is_filtered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "backbones", "vit_tiny_*_patch16_224", "--mixer", "linear", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["vit_tiny_performer_hybrid_patch16_224", "vit_tiny_performer_patch16_224"]
    assert {tuple(row["mixer"]) for row in rows} == {("linear",)}


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["backbones", "resnet18", "--mixer", "linear"],
            "no backbones match 'resnet18' and mix their tokens by linear",
        ),
        (["backbones", "--mixer", "linaer"], "linear"),
        (["methods", "--mixer", "linear"], "--mixer is of backbones; leave it out"),
    ],
)
def test_what_has_no_members_is_refused_in_a_line(
    argv: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", *argv]) == 2
    assert line in capsys.readouterr().err.splitlines()[-1]
