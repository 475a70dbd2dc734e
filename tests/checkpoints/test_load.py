"""A file becomes a backbone: by what it says of itself, by what it holds, or by the name that the user gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.backbones.registry import create_backbone
from ssl_vit.checkpoints.inspection import inspect
from ssl_vit.checkpoints.load import backbone_of_file, load_weights
from ssl_vit.errors import UserError
from ssl_vit.methods import config_class, list_methods, method_class
from ssl_vit.training.checkpoint import Checkpoints, checkpoint_path
from ssl_vit.training.fabric import new_fabric
from ssl_vit.training.step import Learner
from tests.checkpoints.files import dino_head, filled, save, shapes_of, trainer
from tests.export.conftest import randomised
from tests.methods.settings import TEACHER
from tests.test_families_train import resolved

NAME = "vit_tiny_patch16_224"
VIT = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def same(found: Backbone, expected: Backbone) -> None:
    theirs = expected.state_dict()
    assert {key: value for key, value in found.state_dict().items() if not torch.equal(value, theirs[key])} == {}


@pytest.mark.parametrize("method", list_methods())
def test_a_runs_checkpoint_gives_what_the_method_exports(method: str, tmp_path: Path) -> None:
    """Of teacher and student that differ; with the architecture, the size and the colours of the run."""
    config = config_class(method)()
    given = {"queue_size": 8, "out_dim": 8, "hidden_dim": 8, "bottleneck_dim": 8, "head_norm": "none"}
    given |= {"norm_last_layer": False, "centering": "mean", "local_size": 16}
    given |= {"codes": 8, "tokenizer_steps": 0, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
    given |= {"teacher": TEACHER, "teacher_size": 32, "layers": ((-1, -1),)}
    given |= {"boxes": 4, "queries": 6, "dim": 64, "depth": 1, "hidden": 32, "crop_size": 32}
    config = config.model_copy(update={key: value for key, value in given.items() if key in type(config).model_fields})
    backbone = create_backbone(NAME, image_size=32, model_args=VIT, masked=config.masks)
    made = method_class(method)(config, backbone, 32)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter))
    run = resolved(method, "vision_transformer", **{"data.mean": MEAN, "data.std": STD, "train.precision": "32-true"})
    Checkpoints(tmp_path, 1).save(Learner(new_fabric(run.train), made, run, per_epoch=1, total=1), [], 1)
    found = backbone_of_file(checkpoint_path(tmp_path, 1))
    expected = made.exported()
    assert (found.info.size, found.info.mean, found.info.std) == ((32, 32), MEAN, STD)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(found.eval()(images).pooled, expected.eval()(images).pooled)


@pytest.fixture
def source(tmp_path: Path) -> timm.models.VisionTransformer:
    """timm's own model with a classifier of seven classes, saved in each way."""
    torch.manual_seed(0)
    model = timm.create_model(NAME, num_classes=7, img_size=32, **VIT)
    save_file(model.state_dict(), tmp_path / "bare.safetensors")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "bare.pth")
    timm.models.save_for_hf(model, tmp_path / "folder", model_args={**VIT, "img_size": 32}, safe_serialization="both")
    return model


@pytest.mark.parametrize("file", ["bare.safetensors", "bare.pth", "folder", "folder/pytorch_model.bin"])
def test_weights_come_back_from_every_kind_of_file(
    file: str, source: timm.models.VisionTransformer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = create_backbone(NAME, image_size=32, model_args=VIT)
    with caplog.at_level("INFO", "ssl_vit"):
        found = load_weights(backbone, tmp_path / file)
    assert sorted(found.left) == ["head.bias", "head.weight"]
    assert "left over: head (2)" in caplog.text
    for key, value in backbone.model.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key


def test_timms_folder_says_all_that_is_needed(source: timm.models.VisionTransformer, tmp_path: Path) -> None:
    found = backbone_of_file(tmp_path / "folder").eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = source.eval().forward_head(source.forward_features(images), pre_logits=True)
        assert torch.equal(found(images).pooled, expected)
    with pytest.raises(UserError, match=r"--backbone resnet50: .* holds vit_tiny_patch16_224; leave --backbone out"):
        backbone_of_file(tmp_path / "folder", "resnet50")
    with pytest.raises(UserError, match=r"weights of vit_tiny_patch16_224, expected resnet18; choose --backbone vit_"):
        load_weights(create_backbone("resnet18"), tmp_path / "folder")


def test_a_classifier_by_the_name_that_timm_has_for_it(tmp_path: Path) -> None:
    source = timm.create_model("legacy_seresnet18", num_classes=3)  # its classifier is called last_linear
    torch.save(source.state_dict(), tmp_path / "a.pth")
    backbone = create_backbone("legacy_seresnet18")
    load_weights(backbone, tmp_path / "a.pth")
    assert torch.equal(backbone.model.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_an_architecture_that_only_its_weights_tell(tmp_path: Path) -> None:
    """DINO's file of a whole ViT-Ti/16: the model, and the colours that DINO trains with and timm's ViT doesn't."""
    expected = randomised(NAME)
    teacher = {f"backbone.{key}": value for key, value in expected.model.state_dict().items()} | dino_head("", 192)
    file = save(tmp_path, trainer(teacher=teacher, dino_loss={}))
    found = backbone_of_file(file)
    same(found, expected)
    assert (found.info.name, found.info.mean) == (NAME, (0.485, 0.456, 0.406))
    assert create_backbone(NAME).info.mean == (0.5, 0.5, 0.5)
    with pytest.raises(UserError, match="add --backbone NAME"):
        backbone_of_file(save(tmp_path, filled(shapes_of(create_backbone(NAME, image_size=32, model_args=VIT)))))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("not json", "config.json: not JSON"),
        ({"architecture": NAME}, "config.json: 'input_size' is missing or wrong"),
        ({"architecture": NAME, "input_size": [3, 32, 32], "mean": [0.5], "std": [1, 1, 1]}, "config.json"),
        ({"architecture": NAME, "input_size": [3, 32, 32], "mean": "abc", "std": [1, 1, 1]}, "config.json"),
        ({"architecture": NAME, "model_args": 3}, "config.json"),
    ],
)
def test_a_description_that_is_wrong_is_named(config: object, says: str, tmp_path: Path) -> None:
    save_file({"cls_token": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(UserError, match=says) as caught:
        inspect(tmp_path)
    assert "\n" not in str(caught.value)
