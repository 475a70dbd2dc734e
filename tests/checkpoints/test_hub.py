"""Hub ids: brought by huggingface_hub where the user names one, from its cache where there is no network."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file

from ssl_vit.checkpoints.inspection import inspect
from ssl_vit.checkpoints.load import backbone_of_file
from ssl_vit.cli import main

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """huggingface_hub without a network, and a cache of it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def snapshot(cache: Path, revision: str, commit: str) -> Path:
    """Where the cache keeps a revision of owner/name."""
    folder = cache / "models--owner--name"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(commit)
    return folder / "snapshots" / commit


@pytest.mark.parametrize(("hub_id", "revision"), [("hf-hub:owner/name", "main"), ("hf-hub:owner/name@v2", "v2")])
def test_a_model_of_timms_hub_is_restored_with_its_colours(hub_id: str, revision: str, cache: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, **SMALL).eval()
    timm.models.save_for_hf(model, snapshot(cache, revision, "0" * 40), model_args=SMALL)
    found = backbone_of_file(hub_id).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(found(images).pooled, model.forward_head(model.forward_features(images), True))
    assert (found.info.size, found.info.mean) == ((32, 32), (0.5, 0.5, 0.5))
    assert inspect(hub_id).layout == "timm"


def test_a_repository_with_a_pickle_alone(cache: Path) -> None:
    folder = snapshot(cache, "main", "1" * 40)
    folder.mkdir(parents=True)
    model = timm.create_model("resnet18", num_classes=0)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert str(inspect("hf-hub:owner/name").architecture) == "resnet18"


@pytest.mark.fault
def test_what_cannot_be_had_is_said_in_one_line(
    cache: Path, tmp_path: Path, pictures: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    train = ["--train", str(pictures / "train"), "--val", str(pictures / "val")]
    commands = {
        "inspect": ["inspect", "hf-hub:owner/none"],
        "eval": ["eval", "knn", "hf-hub:owner/none", *train],
        "pretrain": ["pretrain", train[1], "--out", str(tmp_path / "run"), "--weights", "hf-hub:owner/none"],
        "a name that is none": ["inspect", "hf-hub:a/b/c"],
    }
    for argv in commands.values():
        assert main(argv) == 2
        [line] = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
        assert "cannot be had (" in line
        assert line.endswith("check the name and the network, or give a file")
    assert not (tmp_path / "run").exists()


@pytest.mark.fault
def test_a_repository_without_weights_is_named(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = snapshot(cache, "main", "2" * 40)
    folder.mkdir(parents=True)
    save_file({"cls_token": torch.zeros(1)}, folder / "other.safetensors")
    assert main(["inspect", "hf-hub:owner/name"]) == 2
    assert "holds neither model.safetensors nor pytorch_model.bin" in capfd.readouterr().err


def test_without_the_prefix_it_is_a_path(capfd: pytest.CaptureFixture[str]) -> None:
    """A mistyped path never becomes a download."""
    assert main(["inspect", "owner/name"]) == 2
    assert "owner/name: no such file or folder" in capfd.readouterr().err
