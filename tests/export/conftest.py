"""A small backbone with weights that nobody else has."""

import copy
from dataclasses import replace

import pytest
import torch

from ssl_vit.backbones.registry import create_backbone
from ssl_vit.export import timm
from ssl_vit.files import new_folder

TINY_VIT = {"patch_size": 8, "img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}


def randomised(name, **kwargs):
    """Every weight and every running statistic drawn anew, so that nothing equals what a fresh model has."""
    backbone = create_backbone(name, **kwargs).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, value in backbone.model.state_dict().items():
            if value.is_floating_point() and "index" not in key:
                noise = torch.randn(value.shape, generator=generator)
                value.copy_(value + 0.05 * (noise.abs() if "running_var" in key else noise))
    return backbone


@pytest.fixture(scope="session")
def vit():
    return randomised("vit_tiny_patch16_224", model_args=TINY_VIT)


def written(backbone, folder, *, mean, std, description):
    """A folder as a run exports it, without the model card."""
    backbone = copy.copy(backbone)
    backbone.info = replace(backbone.info, mean=mean, std=std)
    with new_folder(folder) as staging:
        timm.write(backbone, staging, description)
    return folder
