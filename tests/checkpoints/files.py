"""Checkpoints as the official code writes them: its names and shapes, each tensor filled with a number of its name."""

import json
from argparse import Namespace
from pathlib import Path
from zlib import crc32

import torch

OFFICIAL = Path(__file__).parent / "official"  # names and shapes of the official models, of their first blocks


def number(name):
    """What every element of a tensor of that name is."""
    return crc32(name.encode()) % 9973 / 9973


def filled(shapes, prefix=""):
    """Tensors of these shapes that take no room on disk."""
    return {prefix + name: torch.full((), number(prefix + name)).expand(shape) for name, shape in shapes.items()}


def official(name):
    return json.loads((OFFICIAL / f"{name}.json").read_text())


def shapes_of(backbone):
    return {key: list(value.shape) for key, value in backbone.model.state_dict().items()}


def dino_head(prefix, dim, name="head"):
    shapes = {"mlp.0.weight": [2048, dim], "mlp.0.bias": [2048], "last_layer.weight_g": [65536, 1]}
    return filled({f"{name}.{key}": shape for key, shape in shapes.items()}, prefix)


def trainer(**entries):
    """What trainers write beside the weights."""
    return {"optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "epoch": 3, "args": Namespace(lr=0.1), **entries}


def save(folder, document):
    file = folder / "checkpoint.pth"
    torch.save(document, file)
    return file
