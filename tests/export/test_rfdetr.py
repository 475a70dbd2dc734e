"""RF-DETR: its names always, its features where it is installed (``pip install rfdetr``)."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ssl_vit.backbones.registry import create_backbone
from ssl_vit.cli import main
from ssl_vit.errors import RunFailed, UserError
from ssl_vit.export import rfdetr
from ssl_vit.export.api import export
from tests.conftest import EXPORTS
from tests.export.conftest import randomised, written

PREFIX = "backbone.0.encoder.encoder."
SMALL = ("vit_small_patch14_dinov2", 96, {"patch_size": 16})
# Names and shapes of the encoder that RFDETRNano(positional_encoding_size=6) of rfdetr 1.11.2 builds.
NAMES = json.loads((Path(__file__).parent / "names" / "rfdetr.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rfdetr") / "run"
    name, size, args = SMALL
    backbone = randomised(name, image_size=size, model_args=args)
    written(backbone, folder / "export", mean=(0.5, 0.4, 0.3), std=(0.2,) * 3, description={"method": "dino"})
    return folder


def test_every_name_and_shape_is_the_encoders_own(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--to", "rfdetr", "--out", str(tmp_path / "out")]) == 0
    state = torch.load(tmp_path / "out" / "model.pth", weights_only=True)["model"]
    assert state.pop("class_embed.bias").shape == (91,)
    expected = {
        key: shape for key, shape in NAMES.items() if not key.endswith("mask_token")
    }  # used in pretraining alone
    assert {key: list(value.shape) for key, value in state.items()} == expected
    fused = load_file(run / "export" / "model.safetensors")["blocks.7.attn.qkv.weight"]
    for part, rows in zip(("query", "key", "value"), fused.chunk(3), strict=True):
        assert torch.equal(state[f"{PREFIX}encoder.layer.7.attention.attention.{part}.weight"], rows)
    printed = capsys.readouterr().out
    if importlib.util.find_spec("rfdetr") is None:
        assert "names checked for RF-DETR, not loaded" in printed
    else:
        assert f"verified in RF-DETR {version('rfdetr')}, outputs within" in printed
    assert "ImageNet's mean and deviation; these were trained with (0.5, 0.4, 0.3) and (0.2, 0.2, 0.2)" in printed


@pytest.mark.export
def test_the_detector_gives_our_last_map(
    run: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    pytest.importorskip("rfdetr")
    result = export(run, "rfdetr", tmp_path / "out")
    assert result.max_difference is not None
    assert result.max_difference < 1e-4
    names: dict[str, object] = {}
    exec(result.snippet, names)
    assert type(names["model"]).__name__ == "RFDETRNano"
    record_property(EXPORTS, f"rfdetr × DINOv2: loaded in {result.consumer}, within {result.max_difference:.1g}")


@pytest.mark.fault
def test_a_weight_that_does_not_come_back_is_found_without_the_library(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    real = torch.save

    def spoil(content: dict[str, dict[str, torch.Tensor]], file: Path) -> None:
        content["model"][f"{PREFIX}layernorm.bias"] += 1
        real(content, file)

    monkeypatch.setattr(rfdetr.torch, "save", spoil)
    with pytest.raises(RunFailed, match=r"norm\.bias is not the same when read back from the export for RF-DETR"):
        export(run, "rfdetr", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "size", "args"),
    [
        ("vit_small_patch16_224", 96, {}),  # no LayerScale
        ("vit_small_patch14_dinov2", 96, {"patch_size": 16, "depth": 6}),
        ("vit_small_patch14_reg4_dinov2", 96, {"patch_size": 16}),
    ],
)
def test_another_architecture_is_refused(name: str, size: int, args: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"RF-DETR.*use --to timm or --to onnx"):
        rfdetr.write(create_backbone(name, image_size=size, model_args=args), tmp_path, {})
