"""DINO against a plain float64 re-derivation of the published formulas (2104.14294, section 3 and appendix)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from ssl_vit.backbones.backbone import Backbone, BackboneInfo, Features
from ssl_vit.methods.dino import DINO
from ssl_vit.methods.dino_config import Config
from ssl_vit.methods.heads import DINOHead
from ssl_vit.methods.method import Progress
from ssl_vit.methods.targets import sinkhorn
from ssl_vit.training.optim import clip_gradients

SIZE, LOCAL, OUT = 8, 4, 16


class Tiny(Backbone):
    """Mean colour and a linear layer: takes any size."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 6)
        self.info = BackboneInfo(
            "tiny", "tiny", "mlp", 6, 6, (), None, (8, 8), (1, 1), True, 1, (0, 0, 0), (1, 1, 1), 24
        )

    def forward(self, images, mask=None):
        pooled = self.linear(images.mean((2, 3)))
        return Features(pooled, pooled[..., None, None])


def make(**changes) -> DINO:
    torch.manual_seed(0)
    settings = {
        "out_dim": OUT,
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
        "local_size": LOCAL,
    }
    return DINO(Config(**(settings | changes)), Tiny(), SIZE).double()


def batch(seed: int, images: int = 4) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    sizes = ((images, SIZE), (images, SIZE), (3 * images, LOCAL))
    return [torch.randn(n, 3, s, s, generator=g, dtype=torch.float64) for n, s in sizes]


def head_numpy(head: DINOHead, x: np.ndarray) -> np.ndarray:
    """GELU MLP, unit length, prototypes of length g: written again from the paper, in numpy."""
    gelu = np.vectorize(lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))))
    layers = [layer for layer in head.mlp if isinstance(layer, nn.Linear)]
    for i, layer in enumerate(layers):
        x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        x = gelu(x) if i < len(layers) - 1 else x
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    v, g = head.last_layer.weight_v.detach().numpy(), head.last_layer.weight_g.detach().numpy()
    return x @ (g * v / np.linalg.norm(v, axis=1, keepdims=True)).T


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference_loss(method: DINO, views: list[torch.Tensor], temp: float) -> tuple[float, np.ndarray]:
    """Algorithm 1 of the paper with multi-crop: all pairs (teacher view, student view) but the same view."""

    def logits(net: nn.Module, x: torch.Tensor) -> np.ndarray:
        weight, bias = net.backbone.linear.weight.detach().numpy(), net.backbone.linear.bias.detach().numpy()
        return head_numpy(net.head, x.mean((2, 3)).numpy() @ weight.T + bias)

    images = len(views[0])
    crops = [views[0], views[1], *views[2].split(images)]
    teacher = [logits(method.teacher, crop) for crop in crops[:2]]
    student = [logits(method.student, crop) / method.config.student_temp for crop in crops]
    terms = []
    for i, t in enumerate(teacher):
        q = softmax((t - method.center.numpy()) / temp)
        for j, s in enumerate(student):
            if i != j:
                terms.append(-(q * np.log(softmax(s))).sum(-1).mean())
    return float(np.mean(terms)), np.concatenate(teacher).mean(0, keepdims=True)


def test_loss_centre_and_teacher_equal_the_formulas_for_three_steps() -> None:
    method = make()
    optimizer = torch.optim.SGD([p for p in method.student.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):
        progress = Progress(step, total=10, per_epoch=1)
        temp = 0.03 + (0.06 - 0.03) * step / 3  # linspace(0.03, 0.06, 4)
        expected, seen = reference_loss(method, batch(step), temp)
        centre = 0.9 * method.center.numpy() + 0.1 * seen
        out = method(batch(step), progress)
        assert out.loss.item() == pytest.approx(expected, abs=1e-12)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        m = 1 - (1 - 0.9) * (math.cos(math.pi * step / 10) + 1) / 2
        teacher = [
            m * t.detach().clone() + (1 - m) * s.detach()
            for t, s in zip(method.teacher.parameters(), method.student.parameters(), strict=True)
        ]
        method.after_step(progress)
        np.testing.assert_allclose(method.center.numpy(), centre, atol=1e-12)
        for mine, wanted in zip(method.teacher.parameters(), teacher, strict=True):
            torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-12)


def test_gradient_is_the_derivative_of_the_formula() -> None:
    method = make()
    method(batch(0), Progress(0, 10, 1)).loss.backward()
    weight = method.student.head.last_layer.weight_v
    bias = method.student.backbone.linear.bias
    for parameter, place in ((weight, (3, 2)), (weight, (0, 0)), (bias, (1,))):
        values = []
        for shift in (1e-6, -1e-6):
            with torch.no_grad():
                parameter[place] += shift
                values.append(reference_loss(method, batch(0), 0.03)[0])
                parameter[place] -= shift
        assert parameter.grad[place].item() == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-8)


def test_teacher_takes_no_gradient_and_starts_as_the_student() -> None:
    method = make()
    method(batch(0), Progress(0, 10, 1)).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    for t, s in zip(method.teacher.parameters(), method.student.parameters(), strict=True):
        assert torch.equal(t, s)


def test_last_layer_rests_for_its_epochs_only() -> None:
    method = make(freeze_last_layer_epochs=2.0)
    layer = method.student.head.last_layer
    for step, frozen in ((0, True), (5, True), (6, False)):
        progress = Progress(step, 30, per_epoch=3)
        method.zero_grad()
        method(batch(step), progress).loss.backward()
        method.before_optimizer(progress)
        assert (layer.weight_v.grad is None) == frozen
        assert method.student.head.mlp[0].weight.grad is not None


def test_clipping_is_per_tensor_or_of_the_whole() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    for per_tensor, expected in ((True, ([0.6, 0.8], [0.3, 0.4])), (False, ([0.99503719, 1.32671625], None))):
        parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
        limit = 1.0 if per_tensor else 5.0 / 3.0
        total = clip_gradients(parameters, limit, per_tensor)
        assert total.item() == pytest.approx(math.hypot(5, 0.5))
        torch.testing.assert_close(parameters[0].grad, torch.tensor(expected[0]), rtol=1e-5, atol=1e-5)
        if expected[1]:
            torch.testing.assert_close(parameters[1].grad, torch.tensor(expected[1]), rtol=1e-5, atol=1e-5)


def test_global_batch_norm_equals_torch_in_one_process() -> None:
    from ssl_vit.methods.heads import GlobalBatchNorm1d

    torch.manual_seed(0)
    x = torch.randn(7, 4)
    ours, theirs = GlobalBatchNorm1d(4), nn.BatchNorm1d(4)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_sinkhorn_gives_every_prototype_its_share_and_equals_scaling_by_hand() -> None:
    torch.manual_seed(0)
    logits = torch.randn(12, 4, dtype=torch.float64)
    expected = np.exp(logits.numpy() / 0.5)
    for _ in range(50):
        expected = expected / expected.sum(0, keepdims=True) / 4
        expected = expected / expected.sum(1, keepdims=True) / 12
    found = sinkhorn(logits, 0.5, iterations=50)
    np.testing.assert_allclose(found.numpy(), expected * 12, atol=1e-10)
    np.testing.assert_allclose(found.sum(0).numpy(), 3.0, atol=1e-6)
