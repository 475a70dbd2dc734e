"""For the tests of two-encoder methods: a tiny backbone, and its network written again in numpy float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from ssl_vit.backbones import create_backbone
from ssl_vit.backbones.backbone import Backbone, BackboneInfo, Features
from ssl_vit.methods.base_config import Situation
from ssl_vit.methods.method import Progress
from ssl_vit.methods.siamese import Encoder, Siamese
from tests.methods.small import REAL, slope

SIZE, DIM, HIDDEN, OUT, IMAGES, TOTAL = 8, 6, 10, 5, 4, 10

SITUATION = Situation(
    images=1_281_167,
    epochs=300,
    steps=750_000,
    dim=768,
    image_size=224,
    batch_size=512,
    kind="transformer",
    any_size=True,
    multiple=32,
    drops_paths=True,
    grid=(14, 14),
)


class Tiny(Backbone):
    """Mean colour and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, DIM)
        self.info = BackboneInfo(
            "tiny", "tiny", "mlp", DIM, DIM, (), None, (8, 8), (1, 1), True, 1, (0, 0, 0), (1, 1, 1), 24
        )

    def forward(self, images, mask=None):
        pooled = self.linear(images.mean((2, 3)))
        return Features(pooled, pooled[..., None, None])


def batch(seed: int, dtype: torch.dtype = torch.float64, images: int = IMAGES, size: int = SIZE) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(images, 3, size, size, generator=g, dtype=dtype) for _ in range(2)]


def array(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy()


def mlp_numpy(layers: nn.Sequential, x: np.ndarray) -> np.ndarray:
    """Linear; batch norm by the batch's own mean and (biased) variance, eps 1e-5; ReLU."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            x = x @ array(layer.weight).T + (array(layer.bias) if layer.bias is not None else 0)
        elif isinstance(layer, nn.BatchNorm1d):
            x = (x - x.mean(0)) / np.sqrt(((x - x.mean(0)) ** 2).mean(0) + 1e-5)
            if layer.affine:
                x = x * array(layer.weight) + array(layer.bias)
        else:
            assert isinstance(layer, nn.ReLU)
            x = np.maximum(x, 0)
    return x


def projection_numpy(encoder: Encoder, view: torch.Tensor) -> np.ndarray:
    linear = encoder.backbone.linear
    return mlp_numpy(encoder.projector, view.mean((2, 3)).numpy() @ array(linear.weight).T + array(linear.bias))


def unit_numpy(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def queries_and_keys(method: Siamese, views: list[torch.Tensor]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Unit vectors of views 1 and 2: the student's predictions, the teacher's projections."""
    queries = [unit_numpy(mlp_numpy(method.predictor, projection_numpy(method.student, v))) for v in views]
    return queries, [unit_numpy(projection_numpy(method.teacher, v)) for v in views]


def train_step(method: Siamese, step: int) -> float:
    """One step of SGD on this step's batch; the loss before it."""
    trained = [p for p in method.parameters() if p.requires_grad]
    out = method(batch(step), Progress(step, TOTAL, 1))
    for p, gradient in zip(trained, torch.autograd.grad(out.loss, trained), strict=True):
        p.data -= 0.1 * gradient
    method.after_step(Progress(step, TOTAL, 1))
    return out.loss.item()


def averaged(method: Siamese, before: list[np.ndarray], base: float, step: int) -> list[np.ndarray]:
    """The teacher after its move: m = 1 - (1 - base) (cos(pi step / total) + 1) / 2 (BYOL, 2006.07733, section 3)."""
    m = 1 - (1 - base) * (math.cos(math.pi * step / TOTAL) + 1) / 2
    return [m * t + (1 - m) * array(s) for t, s in zip(before, method.student.parameters(), strict=True)]


def assert_gradient_is_the_derivative(method: Siamese, loss: Callable[[], float]) -> None:
    """Autograd against central differences of the numpy loss, at a few weights of every part that is trained."""
    method.zero_grad()
    method(batch(0), Progress(0, TOTAL, 1)).loss.backward()
    places = {
        "student.backbone.linear.weight": (2, 1),
        "student.projector.0.weight": (3, 4),
        "predictor.3.weight": (1, 7),
    }
    for name, place in places.items():
        parameter = method.get_parameter(name)
        assert parameter.grad[place].item() == pytest.approx(slope(loss, parameter, place), rel=1e-6, abs=1e-8), name


def assert_teacher_is_left_alone(method: Siamese) -> None:
    method(batch(0), Progress(0, TOTAL, 1)).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())


def assert_resumes_exactly(make: Callable[[], Siamese]) -> None:
    """Three steps, the state into a new object of other weights: the next two losses are the same to the bit."""
    first = make()
    for step in range(3):
        train_step(first, step)
    torch.manual_seed(99)
    second = make()
    for p in second.state_dict().values():
        p.copy_(torch.rand_like(p.double()))
    second.load_state_dict(first.state_dict())
    for step in (3, 4):
        assert train_step(first, step) == train_step(second, step)


def assert_one_step_trains(method_class: type[Siamese], config: object, name: str) -> None:
    """Steps of AdamW on a real backbone: every trained parameter has a gradient, the loss falls."""
    torch.manual_seed(0)
    method = method_class(config, create_backbone(name, model_args=REAL[name]), 64)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(4):
        out = method(batch(0, torch.float32, 8, 64), Progress(0, TOTAL, 1))
        optimizer.zero_grad()
        out.loss.backward()
        untouched = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
        assert not untouched
        optimizer.step()
        losses.append(out.loss.item())
    assert out.embedding.shape == (8, method.exported().info.dim)
    assert losses[-1] < losses[0]
    assert all(torch.isfinite(part) and part.ndim == 0 for part in out.parts.values())
