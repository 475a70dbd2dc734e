"""Writes teacher.safetensors, the teacher of the tests: ``python -m tests.methods.make_teacher``."""

from __future__ import annotations

import json
from dataclasses import replace

import torch
from safetensors.torch import save_file

from ssl_vit.backbones import create_backbone
from tests.methods.settings import TEACHER

ARGS = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


def main() -> None:
    torch.manual_seed(0)
    backbone = create_backbone("vit_tiny_patch16_224", image_size=32, model_args=ARGS)
    backbone.info = replace(backbone.info, mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.25))
    with torch.no_grad():
        for name, weight in backbone.model.named_parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.1 if "patch_embed" in name else 0.3)
    save_file(backbone.model.state_dict(), TEACHER, {"config": json.dumps(backbone.architecture())})


if __name__ == "__main__":
    main()
