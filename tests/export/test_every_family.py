"""Our own families as programs: any number of images, every output, whatever it was traced with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.models import model_entrypoint

from ssl_vit.backbones.registry import create_backbone
from ssl_vit.backbones.timm_adapter import TimmBackbone
from ssl_vit.export import onnx
from ssl_vit.export.outputs import trace
from tests.conftest import EXPORTS
from tests.families import cheapest

OURS = [family for family, (name, _) in cheapest().items() if "ssl_vit" in model_entrypoint(name).__module__]
QUICK = {"pvt", "augvit", "vmoe"}  # with and without a class token, in stages and in one scale


PLAIN = {"augvit", "multi_stream", "rams_trans", "refiner", "t2t_vit", "vision_xformer", "vit_early_conv"}


def shallow(family: str) -> TimmBackbone:
    """With few blocks: writing a graph takes time for each, and the others are the same again."""
    torch.manual_seed(0)
    name, kwargs = cheapest()[family]
    small = kwargs["model_args"] or ({"depth": 4} if family in PLAIN else {"depths": (1, 1, 2, 1)})
    return create_backbone(name, image_size=kwargs["image_size"], model_args=small).eval()


@pytest.mark.parametrize(
    "family", [family if family in QUICK else pytest.param(family, marks=pytest.mark.slow) for family in OURS]
)
def test_the_number_of_images_stays_free(family: str) -> None:
    backbone = shallow(family)
    images = torch.randn(3, 3, *backbone.info.size)
    program = trace(backbone).module()
    with torch.inference_mode():
        expected, found = [*backbone(images), *backbone.pyramid(images)], program(images)
    assert len(found) == len(expected)
    for ours, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize("family", OURS)
def test_onnxruntime_gives_our_outputs(
    family: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Traced with two images and run on three: pooled, patches and every map."""
    backbone = shallow(family)
    onnx.write(backbone, tmp_path, {})
    found = onnx.verify(tmp_path, backbone)
    assert found.max_difference is not None
    assert found.max_difference < (1e-3 if family == "rest" else 1e-4)  # whose float32 is 3e-4 from its float64
    record_property(EXPORTS, f"onnx × {family}: loaded in {found.consumer}, within {found.max_difference:.1g}")
