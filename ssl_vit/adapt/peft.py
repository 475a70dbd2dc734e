"""What LoRA has trained as a small file of its own, in the layout that peft reads and writes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssl_vit.adapt.lora import products
from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.errors import RunFailed
from ssl_vit.files import new_folder, sha256

CONFIG, WEIGHTS, SUMS = "adapter_config.json", "adapter_model.safetensors", "SHA256SUMS"
_PREFIX = "base_model.model."  # peft's, before the names of the model's layers


def write(backbone: AdaptedBackbone, folder: Path, start: str | None) -> int:
    """Write the products of a backbone into a new folder, which appears whole, and read them back; the bytes of both.

    start: the file that they were trained beside, as its users know it.

    Raises:
        UserError: the folder is there already.
        RunFailed: what was read back is not what was written.
    """
    state = _state(backbone)
    with new_folder(folder) as staged:
        save_file(state, staged / WEIGHTS, metadata={"format": "pt"})
        (staged / CONFIG).write_text(json.dumps(_config(backbone, start), indent=2) + "\n", encoding="utf-8")
        back = load_file(staged / WEIGHTS)
        if back.keys() != state.keys() or any(not torch.equal(back[key], state[key]) for key in state):
            raise RunFailed(f"{folder}: what is read back is not what was written; check the disk")
        sums = [f"{sha256(staged / name)}  {name}\n" for name in (WEIGHTS, CONFIG)]
        (staged / SUMS).write_text("".join(sums), encoding="utf-8")
        size = sum((staged / name).stat().st_size for name in (WEIGHTS, CONFIG))
    return size


def _state(backbone: AdaptedBackbone) -> dict[str, Tensor]:
    """A [rank, in] and B [out, rank] of each layer, under peft's names."""
    found = {}
    for name, layer in products(backbone.model):
        for part, value in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            found[f"{_PREFIX}{name}.{part}.weight"] = value.detach().cpu().clone().contiguous()
    return found


def _config(backbone: AdaptedBackbone, start: str | None) -> dict[str, object]:
    """peft's settings; its factor, lora_alpha / r, is 1."""
    layers = dict(products(backbone.model))
    rank = len(next(iter(layers.values())).lora_A)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": start or backbone.info.name,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": list(layers),
    }
