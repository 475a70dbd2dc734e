"""What tests of methods on patches share: a tiny backbone in float64, and DINO's arithmetic written again in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from ssl_vit.backbones import create_backbone
from ssl_vit.backbones.backbone import Backbone, BackboneInfo, Features, Stage
from ssl_vit.methods.method import Progress

SETTINGS = {
    "out_dim": 16,
    "hidden_dim": 10,
    "bottleneck_dim": 5,
    "head_norm": "none",
    "norm_last_layer": False,
    "centering": "mean",
    "teacher_temp": 0.06,
    "warmup_teacher_temp": 0.03,
    "warmup_teacher_temp_epochs": 4.0,
    "momentum": 0.9,
    "freeze_last_layer_epochs": 0.0,
    "local_crops": 3,
    "global_scale": (0.4, 1.0),
    "local_scale": (0.05, 0.4),
    "local_size": 4,
}

REAL = {  # a transformer, a pyramid and a convolutional network, as small as they get, for crops of 64 pixels
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 1, "patch_size": 8, "embed_dim": 24},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "depths": (1, 1, 1, 1), "embed_dim": 12, "window_size": 4},
    "resnet10t": {},
}


class Patchy(Backbone):
    """Each patch of two by two pixels goes through one linear layer, or is a token where hidden; pooled is the mean."""

    def __init__(self, patch_dim: int = 6) -> None:
        super().__init__()
        self.linear = nn.Linear(12, patch_dim)
        self.token = nn.Parameter(torch.randn(patch_dim))
        self.widen = nn.Linear(patch_dim, 7) if patch_dim != 6 else nn.Identity()
        stages = (Stage(patch_dim, 2),)
        dim = 6 if patch_dim == 6 else 7
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        self.info = BackboneInfo(
            "patchy", "test", "mlp", dim, patch_dim, stages, 2, (8, 8), (4, 4), True, 2, mean, std, 84
        )

    def forward(self, images, mask=None):
        patches = self.linear(torch.pixel_unshuffle(images, 2).movedim(1, -1))
        if mask is not None:
            patches = torch.where(mask[..., None], self.token, patches)
        return Features(self.widen(patches.mean((1, 2))), patches.movedim(-1, 1))


def views(seed: int, images: int = 4, local: int = 3) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    sizes = ((images, 8), (images, 8), (local * images, 4))
    return [torch.randn(n, 3, s, s, generator=g, dtype=torch.float64) for n, s in sizes if n]


def seen_by(backbone: Patchy, x: torch.Tensor, mask: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Pooled [B, 6] and regions [B, T, 6] as numpy, for images [B, 3, S, S] and masks [B, S / 2, S / 2]."""
    b, _, s, _ = x.shape
    cells = x.numpy().reshape(b, 3, s // 2, 2, s // 2, 2).transpose(0, 2, 4, 1, 3, 5).reshape(b, -1, 12)
    patches = cells @ backbone.linear.weight.detach().numpy().T + backbone.linear.bias.detach().numpy()
    if mask is not None:
        patches[mask.reshape(b, -1)] = backbone.token.detach().numpy()
    return patches.mean(1), patches


def head_numpy(head: nn.Module, x: np.ndarray) -> np.ndarray:
    """GELU MLP, unit length, prototypes of length g (2104.14294), for features [..., D]."""
    gelu = np.vectorize(lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))))
    layers = [layer for layer in head.mlp if isinstance(layer, nn.Linear)]
    for i, layer in enumerate(layers):
        x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        x = gelu(x) if i < len(layers) - 1 else x
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    v, g = head.last_layer.weight_v.detach().numpy(), head.last_layer.weight_g.detach().numpy()
    return x @ (g * v / np.linalg.norm(v, axis=1, keepdims=True)).T


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cross(q: np.ndarray, logits: np.ndarray, temp: float = 0.1) -> np.ndarray:
    """-Σ q log softmax(logits / temp) over the last axis."""
    return -(q * np.log(softmax(logits / temp))).sum(-1)


def teacher_after(method: nn.Module, momentum: float) -> list[torch.Tensor]:
    """What the average must be after the step, from what teacher and student are now."""
    pairs = zip(method.teacher.parameters(), method.student.parameters(), strict=True)
    return [momentum * t.detach().clone() + (1 - momentum) * s.detach() for t, s in pairs]


def slope(value, parameter: torch.Tensor, place: tuple[int, ...], shift: float = 1e-6) -> float:
    """The derivative of ``value()`` with respect to one number of a parameter, by central difference."""
    found = []
    for change in (shift, -2 * shift):
        with torch.no_grad():
            parameter[place] += change
        found.append(value())
    with torch.no_grad():
        parameter[place] += shift
    return (found[0] - found[1]) / (2 * shift)


def takes_a_step(method_around, name: str, masked: bool = False) -> None:
    """Every trained parameter of the student gets a gradient; a step down it lowers the loss as far as it should."""
    torch.manual_seed(0)
    method = method_around(create_backbone(name, model_args=REAL[name], masked=masked))
    batch = [torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64), torch.randn(6, 3, 32, 32)]

    def loss() -> torch.Tensor:
        torch.manual_seed(1)
        return method(batch, Progress(0, 10, 1)).loss

    before = loss()
    before.backward()
    trained = [(key, p) for key, p in method.student.named_parameters() if p.requires_grad]
    assert [key for key, p in trained if p.grad is None] == []
    square = sum(p.grad.square().sum().item() for _, p in trained)
    torch.optim.SGD([p for _, p in trained], lr=1e-3 / square).step()
    assert before.item() - loss().item() == pytest.approx(1e-3, rel=0.2)
