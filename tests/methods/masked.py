"""For the tests of masked methods: a network that can leave patches out, and three steps held against formulas."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from ssl_vit.backbones.backbone import Visible
from ssl_vit.methods.masked import Masked
from ssl_vit.methods.method import Progress
from tests.methods.small import Patchy, slope

START = Progress(0, total=10, per_epoch=1)


class Plain(Patchy):
    """Patchy that can also leave patches out; its prefix is the mean of what it sees."""

    def visible(self, images, kept):
        patches = self.linear(torch.pixel_unshuffle(images, 2).movedim(1, -1)).flatten(1, 2)
        seen = patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[-1]))
        return Visible(seen.mean(1), seen.mean(1, keepdim=True), seen)


def images(seed: int, count: int = 4) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 8, 8, generator=g, dtype=torch.float64)


def cells(x: torch.Tensor) -> np.ndarray:
    """Images [B, 3, 8, 8] as patches [B, 16, 3, 4] of two by two pixels."""
    b = len(x)
    return x.numpy().reshape(b, 3, 4, 2, 4, 2).transpose(0, 2, 4, 1, 3, 5).reshape(b, 16, 3, 4)


def array(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy()


def three_steps_equal(
    method: Masked, formula: Callable[[torch.Tensor, int], float], watched: dict[str, tuple[int, ...]]
) -> None:
    """Loss, and the derivative by some numbers of some parameters, before each of three steps of AdamW.

    formula: the loss for images [B, 3, 8, 8] and the seed of the step's masks; watched: parameter to a place in it.
    """
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=0.01)
    parameters = dict(method.named_parameters())
    losses = []
    for step in range(3):
        batch = images(step)
        torch.manual_seed(step)
        out = method([batch], Progress(step, 10, 1))
        assert out.loss.item() == pytest.approx(formula(batch, step), abs=1e-10)
        optimizer.zero_grad()
        out.loss.backward()
        for name, place in watched.items():
            parameter = parameters[name]
            expected = slope(lambda batch=batch, step=step: formula(batch, step), parameter, place)
            assert parameter.grad[place].item() == pytest.approx(expected, abs=1e-7), name
        optimizer.step()
        losses.append(out.loss.item())
    assert len(set(losses)) == 3


def every_weight_gets_a_gradient(method: Masked, size: int) -> None:
    """With two images of ``size`` pixels."""
    torch.manual_seed(0)
    out = method([torch.randn(2, 3, size, size)], START)
    out.loss.backward()
    assert out.loss.isfinite()
    assert [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
    felt = [p for p in method.backbone.parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert len(felt) > 3


def linear_numpy(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
    return x @ array(layer.weight).T + array(layer.bias)
