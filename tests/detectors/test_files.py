"""A detector written and read again: the same answers, the official rule for fine-tuning, words for other files."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ssl_vit.backbones import create_backbone
from ssl_vit.detectors.files import FILE, detector_of, load_detector, save_detector
from ssl_vit.detectors.networks import network_class
from ssl_vit.detectors.table import PretrainableName
from ssl_vit.errors import UserError
from ssl_vit.export import timm

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def make(kind):
    torch.manual_seed(0)
    vit = create_backbone(
        "vit_tiny_patch16_224", image_size=64, model_args={"embed_dim": 48, "depth": 2, "num_heads": 3}
    )
    return network_class(kind)(vit, 1, queries=7, depth=1, dim=32, hidden=48, embedding=5)


@pytest.fixture(params=get_args(PretrainableName))
def written(request, tmp_path):
    detector = make(request.param)
    (tmp_path / "export").mkdir()
    save_detector(detector, tmp_path / "export" / FILE, timm.config(detector.backbone, MEAN, STD, {}))
    return detector.eval(), tmp_path


def test_says_the_same_when_read_again(written):
    detector, run = written
    file = detector_of(run)
    assert file == run / "export" / FILE == detector_of(run / "export")
    found = load_detector(file).eval()
    assert (found.backbone.info.mean, found.backbone.info.std) == (MEAN, STD)
    images = torch.randn(2, 3, 64, 64)
    for ours, theirs in zip(
        found(images)[::3] + found(images)[:2], detector(images)[::3] + detector(images)[:2], strict=True
    ):
        assert torch.equal(ours, theirs)


def test_fine_tuning_begins_with_all_but_the_class_head(written):
    detector, run = written
    found = load_detector(detector_of(run), num_classes=4)
    before, after = detector.state_dict(), found.state_dict()
    assert {name.split(".")[0] for name in before.keys() - after.keys()} == {"feature_embed"}
    assert not after.keys() - before.keys()
    changed = {name for name in after if before[name].shape != after[name].shape or not before[name].equal(after[name])}
    assert {name.split(".")[0] for name in changed} == {"class_embed"}
    predictions = found(torch.randn(2, 3, 64, 64))
    assert predictions.embeddings is None
    assert predictions.logits.shape[-1] == (4 if found.focal else 5)


def test_other_files_are_refused(written, tmp_path):
    _, run = written
    assert detector_of(tmp_path / "nothing") is None
    with pytest.raises(UserError, match="no such file"):
        load_detector(tmp_path / "nothing")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other.safetensors: holds no detector; give RUN/export/detector.safetensors"):
        load_detector(tmp_path / "other.safetensors")
    file = detector_of(run)
    state = load_file(file)
    del state["query_embed.weight"]
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(state, tmp_path / "less.safetensors", metadata=metadata)
    with pytest.raises(UserError, match=r"less.safetensors: not the detector that it describes .*query_embed.weight"):
        load_detector(tmp_path / "less.safetensors")
