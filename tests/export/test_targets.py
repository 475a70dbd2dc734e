"""Every target, opened by its own library: the same features, or a refusal that says what to do.

The table at the end of a run says who loaded what, whose names were checked, and what was refused.
"""

import importlib
import importlib.util
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file

from ssl_vit.checkpoints.inspection import inspect
from ssl_vit.checkpoints.load import load_weights
from ssl_vit.cli import main
from ssl_vit.errors import RunFailed, UserError
from ssl_vit.export import TARGETS
from ssl_vit.export.api import export
from tests.conftest import EXPORTS
from tests.export.conftest import written
from tests.export.models import MODELS, fresh, model

LOADED = {  # by the library itself
    "timm": set(MODELS),
    "torchvision": {"ViT", "Swin", "ResNet", "ResNet, bottlenecks", "ConvNeXt"},
    "torchvision-detection": set(MODELS),
    "transformers": set(MODELS) - {"ours"},
    "safetensors": set(MODELS),
}
NAMED = {  # by a table of names
    "detectron2": {"ViT", "Swin", "ResNet", "ResNet, bottlenecks"},
    "mmdet": {"ViT", "Swin", "ResNet", "ResNet, bottlenecks", "PVTv2"},
    "rfdetr": set(),  # whose one architecture is in test_rfdetr.py
}
NAMES = Path(__file__).parent / "names"
TRACED_QUICKLY = ("ViT",)


@pytest.fixture
def run_of(tmp_path):
    def make(name):
        folder = tmp_path / "run"
        written(model(name), folder / "export", mean=(0.5, 0.4, 0.3), std=(0.2,) * 3, description={"method": "dino"})
        return folder

    return make


@pytest.mark.export
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", LOADED)
def test_the_library_gives_our_features(run_of, name, target, record_property):
    run = run_of(name)
    if name not in LOADED[target]:
        with pytest.raises(UserError, match=r"use --to ") as refusal:
            export(run, target)
        record_property(EXPORTS, f"{target} × {name}: refused: {refusal.value}")
        assert sorted(entry.name for entry in run.iterdir()) == ["export"]
        return
    result = export(run, target)
    assert result.max_difference < 1e-4
    assert result.folder == run / ("export" if target == "timm" else f"export-{target}")
    assert len(result.snippet.splitlines()) <= 5
    record_property(EXPORTS, f"{target} × {name}: loaded in {result.consumer}, within {result.max_difference:.1g}")


@pytest.mark.export
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", NAMED)
def test_where_nothing_can_be_loaded_it_is_said(run_of, name, target, capsys, record_property):
    run = run_of(name)
    if name not in NAMED[target]:
        assert main(["export", str(run), "--to", target]) == 2
        refusal = capsys.readouterr().err.strip()
        assert "use --to timm or --to onnx" in refusal
        record_property(EXPORTS, f"{target} × {name}: refused: {refusal}")
        return
    assert main(["export", str(run), "--to", target]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith(", not loaded")
    assert printed[0].startswith(f"{run / f'export-{target}'}: names checked for ")
    record_property(EXPORTS, f"{target} × {name}: {printed[0].partition(': ')[2]}")


@pytest.mark.export
@pytest.mark.parametrize("target", ["onnx", "torch-export"])
@pytest.mark.parametrize(
    "name", [name if name in TRACED_QUICKLY else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_the_computation_itself_is_kept(run_of, name, target, record_property):
    result = export(run_of(name), target)
    assert result.max_difference < 1e-4
    record_property(EXPORTS, f"{target} × {name}: loaded in {result.consumer}, within {result.max_difference:.1g}")
    images = torch.randn(5, 3, *model(name).info.size)  # neither the number traced nor the number verified
    names: dict = {}
    exec(result.snippet, names)
    with torch.inference_mode():
        expected = [*model(name)(images), *model(name).pyramid(images)]
        found = list(names["embed"](images.numpy()).values()) if target == "onnx" else names["model"](images)
    assert len(found) == len(expected)
    for ours, theirs in zip(expected, found, strict=True):
        scale = ours.abs().max()
        torch.testing.assert_close(torch.as_tensor(np.array(theirs)) / scale, ours / scale, rtol=0, atol=1e-4)


@pytest.mark.export
def test_a_faster_rcnn_learns_on_an_exported_backbone(run_of):
    names: dict = {}
    exec(export(run_of("ours"), "torchvision-detection").snippet, names)
    detector = names["model"].train()
    detector.transform.min_size, detector.transform.max_size = (64,), 96
    losses = detector(
        [torch.rand(3, 50, 70)], [{"boxes": torch.tensor([[5.0, 5.0, 40.0, 30.0]]), "labels": torch.tensor([1])}]
    )
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in detector.backbone.body.parameters())


def test_a_resnet_goes_into_torchvisions_own_pyramid(run_of):
    result = export(run_of("ResNet"), "torchvision")
    theirs = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=torch.nn.BatchNorm2d
    )
    theirs.body.load_state_dict(load_file(result.folder / "model.safetensors"))
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        maps = theirs.body.eval()(images)
        for found, expected in zip(maps.values(), model("ResNet").pyramid(images)[-4:], strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.export
def test_transformers_prepares_images_as_in_training(run_of):
    from PIL import Image

    names: dict = {}
    exec(export(run_of("Swin"), "transformers").snippet, names)
    pixels = names["processor"](Image.new("RGB", (100, 60), "white"), return_tensors="pt")["pixel_values"]
    expected = torch.tensor([0.5, 0.6, 0.7]).view(1, 3, 1, 1).expand(1, 3, 64, 64) / 0.2
    torch.testing.assert_close(pixels, expected)


@pytest.mark.parametrize("target", ["torchvision", "transformers", "mmdet", "safetensors"])
@pytest.mark.parametrize("name", ["ViT", "Swin", "ResNet", "ConvNeXt", "PVTv2"])
def test_what_went_out_comes_back(run_of, name, target):
    if name not in {**LOADED, **NAMED}[target]:
        pytest.skip(f"{target} has no {name}")
    folder = export(run_of(name), target).folder
    file = folder / ("model.pth" if target == "mmdet" else "model.safetensors")
    backbone = fresh(name)
    found = load_weights(backbone, file)
    assert found.left == []
    for key, value in model(name).model.state_dict().items():
        assert torch.equal(backbone.model.state_dict()[key], value), key


# Names and shapes of the state dicts that the libraries themselves build for these architectures: Detectron2 at
# 02b5c4e2, MMPretrain 1.2.0 and, for PVTv2, MMDetection 3.3.0. Not in a file of weights: what they compute, and the
# norms of the first stages, which belong to a detector.
COMPUTED = (".relative_position_index", "norm0.weight", "norm0.bias", "norm1.weight", "norm1.bias")
COMPUTED += ("norm2.weight", "norm2.bias")


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (target, name)
        for target in NAMED
        if NAMED[target]
        for name in json.loads((NAMES / f"{target}.json").read_text())
    ],
)
def test_the_names_and_shapes_are_the_librarys_own(run_of, target, name):
    theirs = json.loads((NAMES / f"{target}.json").read_text())[name]
    folder = export(run_of(name), target).folder
    if target == "detectron2":
        state = pickle.loads((folder / "model.pkl").read_bytes())["model"]
    else:
        state = torch.load(folder / "model.pth", weights_only=True)["state_dict"]
    found = {key.removeprefix("backbone.") if target == "mmdet" else key: list(v.shape) for key, v in state.items()}
    expected = {
        key: shape
        for key, shape in theirs.items()
        if not key.endswith(COMPUTED[0]) and not (name == "Swin" and key in COMPUTED)
    }
    assert found == expected


def test_detectron2_gets_numpy_under_its_names(run_of):
    folder = export(run_of("ResNet, bottlenecks"), "detectron2").folder
    content = pickle.loads((folder / "model.pkl").read_bytes())
    assert (content["__author__"], content["matching_heuristics"]) == ("ssl_vit", True)
    ours = model("ResNet, bottlenecks").model.state_dict()
    pairs = {
        "stem.conv1.norm.running_var": "bn1.running_var",
        "res2.0.shortcut.weight": "layer1.0.downsample.0.weight",
        "res2.0.shortcut.norm.bias": "layer1.0.downsample.1.bias",
        "res3.1.conv3.norm.weight": "layer2.1.bn3.weight",
        "res5.0.conv2.weight": "layer4.0.conv2.weight",
    }
    for theirs, name in pairs.items():
        np.testing.assert_array_equal(content["model"][theirs], ours[name].numpy())


def test_mmdets_swin_reads_neighbours_in_the_order_of_unfold(run_of):
    """Theirs merges patches with nn.Unfold; the same norm and the same sums must come out."""
    file = export(run_of("Swin"), "mmdet").folder / "model.pth"
    state = torch.load(file, weights_only=True)["state_dict"]
    layer = model("Swin").model.layers[1].downsample
    x = torch.randn(2, 6, 6, 12)
    prefix = "backbone.stages.0.downsample."
    unfolded = torch.nn.functional.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
    normed = torch.nn.functional.layer_norm(unfolded, (48,), state[prefix + "norm.weight"], state[prefix + "norm.bias"])
    with torch.inference_mode():
        expected = layer(x).flatten(1, 2)
    torch.testing.assert_close(normed @ state[prefix + "reduction.weight"].T, expected)


def test_one_file_says_all_about_itself(run_of):
    folder = export(run_of("ViT"), "safetensors").folder
    with safe_open(folder / "model.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    assert config["architecture"] == "vit_tiny_patch16_224"
    assert config["pretrained_cfg"]["mean"] == [0.5, 0.4, 0.3]
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    assert config["ssl_vit"] == {"method": "dino"}


def test_a_card_and_a_table_of_names_lie_beside(run_of):
    result = export(run_of("Swin"), "torchvision")
    card = (result.folder / "README.md").read_text()
    for fact in ("swin_tiny_patch4_window7_224", "64×64", "(0.5, 0.4, 0.3)", "Method: dino", "verified in torchvision"):
        assert fact in card
    assert "Licence: unspecified" in card
    assert result.snippet in card
    rows = [line.split("\t") for line in (result.folder / "keys.tsv").read_text().splitlines()]
    assert rows[0] == ["timm", "exported", "shape"]
    assert ["layers.1.downsample.reduction.weight", "features.2.reduction.weight", "[24, 48]"] in rows
    assert {row[0] for row in rows[1:]} == set(model("Swin").model.state_dict())


def test_what_transformers_saves_is_recognised(run_of):
    found = inspect(export(run_of("ViT"), "transformers").folder)
    assert (found.layout, found.names, found.left) == ("transformers", "transformers", [])


@pytest.mark.fault
def test_an_export_that_gives_other_features_never_appears(run_of, monkeypatch):
    from ssl_vit.export import torchvision as target

    real = target.save_weights

    def spoil(state, folder):
        state = {key: value.clone() for key, value in state.items()}
        state["encoder.ln.bias"] += 1e-2
        real(state, folder)

    monkeypatch.setattr(target, "save_weights", spoil)
    run = run_of("ViT")
    with pytest.raises(RunFailed, match=r"--to torchvision: outputs differ by .* nothing was written"):
        export(run, "torchvision")
    assert sorted(entry.name for entry in run.iterdir()) == ["export"]


@pytest.mark.fault
@pytest.mark.parametrize("target", ["detectron2", "mmdet"])
def test_a_name_that_is_wrong_is_found_without_the_library(run_of, target, monkeypatch):
    module = importlib.import_module(f"ssl_vit.export.{TARGETS[target]}")
    maps = dict(module.MAPS)
    broken = type(maps["resnet"])(*maps["resnet"].rules[:-1])
    monkeypatch.setattr(module, "MAPS", maps | {"resnet": broken})
    with pytest.raises(UserError, match=r"has no place in"):
        export(run_of("ResNet"), target)


@pytest.mark.parametrize(("target", "package"), [("transformers", "transformers"), ("onnx", "onnxruntime")])
def test_a_library_that_is_missing_is_named_with_its_extra(run_of, monkeypatch, target, package):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else real(name, *rest))
    with pytest.raises(UserError, match=r"pip install 'ssl_vit\[(hf|onnx)\]'"):
        export(run_of("ViT"), target)


def test_every_target_is_tested_and_in_the_help(capsys):
    assert set(TARGETS) == {*LOADED, *NAMED, "onnx", "torch-export"}
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    printed = "".join(capsys.readouterr().out.split())
    assert ",".join(TARGETS) in printed
