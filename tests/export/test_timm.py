"""The export is loaded by plain timm, in the same process and in one that has no ssl_vit."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from ssl_vit.errors import RunFailed, UserError
from ssl_vit.export.timm import read_export, snippet, verify
from tests.export.conftest import TINY_VIT, randomised, written

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


@pytest.fixture
def folder(vit, tmp_path):
    return written(vit, tmp_path / "export", mean=MEAN, std=STD, description={"method": "dino"})


OURS = ("cswin_tiny_224", {"image_size": 96, "model_args": {"embed_dim": 32}})
CASES = {
    "ViT, other size": ("vit_tiny_patch16_224", {"image_size": 48}),
    "ViT, built for 384": ("vit_tiny_patch16_384", {"model_args": {"depth": 1}}),
    "ViT, mean of tokens": ("vit_tiny_patch16_224", {"model_args": TINY_VIT | {"global_pool": "avg"}}),
    "ViT, masked": ("vit_tiny_patch16_224", {"model_args": TINY_VIT, "masked": True}),
    "ViT, drop path": ("vit_tiny_patch16_224", {"model_args": TINY_VIT, "drop_path": 0.1}),
    "Swin, other size": ("swin_tiny_patch4_window7_224", {"image_size": 64, "model_args": {"depths": (2, 2, 2, 1)}}),
    "ResNet": ("resnet18", {"image_size": 64}),
    "ConvNeXt": ("convnext_atto", {"image_size": 64}),
    "one of ours": OURS,
}


@pytest.mark.parametrize("case", CASES)
def test_plain_timm_loads_what_was_written(case, tmp_path):
    name, kwargs = CASES[case]
    backbone = randomised(name, **kwargs)
    folder = written(backbone, tmp_path / "export", mean=MEAN, std=STD, description={})
    verified = verify(folder, backbone)
    assert verified.consumer == f"timm {timm.__version__}"
    assert verified.max_difference == 0
    # The contract itself, without verify: the same image, the same vector.
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    image = torch.rand(1, 3, *backbone.info.size)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(image), backbone(image).pooled)
        torch.testing.assert_close(read_export(folder).eval()(image).pooled, backbone(image).pooled)


def test_the_snippet_runs_where_ssl_vit_cannot_be_imported(vit, folder, tmp_path):
    lines = snippet(folder, vit)
    assert len(lines.splitlines()) <= 4
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    save_file({"image": image}, tmp_path / "image.safetensors")
    script = f"""
import sys
sys.modules["ssl_vit"] = None  # any import of it fails
{lines}
from safetensors.torch import load_file, save_file
from PIL import Image
image = load_file({str(tmp_path / "image.safetensors")!r})["image"]
white = transform(Image.new("RGB", (100, 60), "white"))
save_file({{"pooled": model(image).detach(), "white": white}}, {str(tmp_path / "found.safetensors")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=600, cwd=tmp_path)
    found = load_file(tmp_path / "found.safetensors")
    with torch.inference_mode():
        torch.testing.assert_close(found["pooled"], vit(image).pooled)
    # Mean, deviation and size of the training, not those of some ImageNet weights: (1 - mean) / std.
    expected = torch.tensor([0.9 / 0.4, 0.8 / 0.5, 0.7 / 0.6]).view(3, 1, 1).expand(3, 32, 32)
    torch.testing.assert_close(found["white"], expected)


@pytest.mark.slow
def test_the_snippet_of_our_own_families_imports_them(tmp_path):
    name, kwargs = OURS
    backbone = randomised(name, **kwargs)
    folder = written(backbone, tmp_path / "export", mean=MEAN, std=STD, description={})
    lines = snippet(folder, backbone)
    assert lines.startswith("import ssl_vit.backbones.families.cswin\n")
    assert len(lines.splitlines()) <= 4
    subprocess.run([sys.executable, "-c", f"{lines}\nassert model.num_features == 256"], check=True, timeout=600)


def test_a_new_classifier_can_be_put_on(folder, vit):
    tuned = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7)
    assert tuned.head.weight.shape == (7, 48)
    for key, value in vit.model.state_dict().items():
        assert torch.equal(tuned.state_dict()[key], value), key


def test_the_config_claims_nothing_of_others(folder):
    text = (folder / "config.json").read_text()
    config = json.loads(text)
    assert config["pretrained_cfg"]["license"] == "unspecified"
    assert config["pretrained_cfg"]["mean"] == [0.1, 0.2, 0.3]
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    assert config["ssl_vit"] == {"method": "dino"}
    for foreign in ("http", "timm/", "augreg", "apache", "hf_hub", "tag"):
        assert foreign not in text
    assert timm.create_model(f"local-dir:{folder}", pretrained=True).pretrained_cfg.get("tag") is None


def test_reading_gives_mean_deviation_and_size_of_the_training(folder, vit):
    info = read_export(folder).info
    assert (info.mean, info.std, info.size) == (MEAN, STD, (32, 32))


def test_an_existing_folder_is_left_as_it_is(folder, vit):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="never overwritten"):
        written(vit, folder, mean=STD, std=MEAN, description={})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_write_that_fails_leaves_nothing(vit, tmp_path):
    with pytest.raises(TypeError):
        written(vit, tmp_path / "export", mean=MEAN, std=STD, description={"not": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_training_stays_in_training(vit, folder):
    vit.train()
    verify(folder, vit)
    assert all(module.training for module in vit.modules())
    vit.eval()


@pytest.mark.fault
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "empty", "remove"])
def test_harmed_files_are_named(folder, vit, name, harm):
    path = folder / name
    data = bytearray(path.read_bytes())
    if harm == "remove":
        path.unlink()
    else:
        data[-20] ^= 1
        path.write_bytes({"flip": data, "truncate": data[: len(data) // 2], "empty": b""}[harm])
    for action in (lambda: verify(folder, vit), lambda: read_export(folder)):
        with pytest.raises(UserError, match=name) as caught:
            action()
        assert "\n" not in str(caught.value)


@pytest.mark.fault
def test_weights_of_another_run_are_named_by_key(folder, vit):
    (folder / "SHA256SUMS").unlink()
    weights = load_file(folder / "model.safetensors")
    weights["blocks.1.mlp.fc1.weight"][3, 4] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunFailed, match=r"blocks\.1\.mlp\.fc1\.weight"):
        verify(folder, vit)


@pytest.mark.fault
def test_a_missing_key_is_refused(folder, vit):
    (folder / "SHA256SUMS").unlink()
    weights = load_file(folder / "model.safetensors")
    del weights["blocks.0.attn.proj.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunFailed, match=r"blocks\.0\.attn\.proj\.bias"):
        verify(folder, vit)
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.proj\.bias"):
        read_export(folder)


@pytest.mark.fault
def test_another_architecture_is_refused_with_key_and_shapes(folder):
    (folder / "SHA256SUMS").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["embed_dim"] = 96
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"cls_token.*\(?1, 1, 48\)?.*\(?1, 1, 96\)?|cls_token.*96.*48"):
        read_export(folder)


@pytest.mark.fault
@pytest.mark.parametrize("text", ["[]", "{}", "not json", '{"architecture": "vit_tiny_patch16_224"}'])
def test_a_config_that_is_not_timms_is_named(folder, text):
    (folder / "SHA256SUMS").unlink()
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        read_export(folder)
