"""Layers and poolings against timm's own functions."""

import numpy as np
import pytest
import timm
import torch

from ssl_vit.backbones.registry import create_backbone
from ssl_vit.data.sources import open_source
from ssl_vit.errors import UserError
from ssl_vit.eval import features
from ssl_vit.eval.kind import ReadoutOptions
from ssl_vit.eval.readout import Readout, layer_columns, read_out
from tests.eval.conftest import MEAN, STD


def layers_of(text):
    return ReadoutOptions.of({"layers": text}, "embed").layers


def readout(chosen="last1", pooling="model", precision="float32"):
    return Readout(32, MEAN, STD, layers_of(chosen), pooling, precision)


def test_the_last_four_class_tokens_are_dinos(run, vit):
    """As DINO's get_intermediate_layers: the last norm on each block's output, class tokens side by side."""
    model = timm.create_model(f"local-dir:{run / 'export'}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        x, outputs = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images)))), []
        for block in model.blocks:
            x = block(x)
            outputs.append(model.norm(x))
        count = min(4, len(outputs))
        expected = torch.cat([tokens[:, 0] for tokens in outputs[-count:]], 1)
        torch.testing.assert_close(read_out(vit, images, readout(f"last{count}", "class")), expected)
        both = torch.cat([outputs[0][:, 0], outputs[0][:, 1:].mean(1)], 1)
        torch.testing.assert_close(read_out(vit, images, readout("0", "class+mean")), both)
        torch.testing.assert_close(read_out(vit, images, readout()), vit(images).pooled)
        torch.testing.assert_close(read_out(vit, images, readout("-1", "class")), vit(images).pooled)


def test_stages_of_a_hierarchical_model():
    backbone = create_backbone("test_resnet").eval()
    images = torch.randn(2, 3, 64, 64)
    chosen = Readout(64, MEAN, STD, layers_of("last2"), "mean")
    with torch.inference_mode():
        found = read_out(backbone, images, chosen)
        maps = backbone.model.forward_intermediates(images, indices=2, intermediates_only=True)
    torch.testing.assert_close(found, torch.cat([level.mean((2, 3)) for level in maps], 1))
    assert [part.stop - part.start for part in layer_columns(backbone, chosen)] == [level.shape[1] for level in maps]


def test_what_is_not_there_is_named(vit):
    with pytest.raises(UserError, match=r"has layers 0 to \d+; got layer 99"):
        read_out(vit, torch.zeros(1, 3, 32, 32), readout("99"))
    with pytest.raises(UserError, match="has no class token"):
        read_out(create_backbone("test_resnet"), torch.zeros(1, 3, 64, 64), readout(pooling="class"))


def test_bfloat16_is_near_or_refused(vit, images, monkeypatch):
    source = open_source(images / "val")
    exact = features.extract(vit, source, readout(), device="cpu").features
    near = features.extract(vit, source, readout(precision="bfloat16"), device="cpu").features
    assert 0 < np.abs(near - exact).max() < 0.1 * np.abs(exact).max()
    monkeypatch.setattr(features, "_SAFE", 1.1)
    with pytest.raises(UserError, match="bfloat16 features are not safe"):
        features.extract(vit, source, readout(precision="bfloat16"), device="cpu")
