"""What all families are held to when torch compiles them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def check_compiled(model: nn.Module, x: Tensor, backend: str = "aot_eager") -> None:
    """As one graph, forward and backward, a model gives what it gives uncompiled, and the same gradients."""
    torch.compiler.reset()
    results = []
    for run in (torch.compile(model, fullgraph=True, backend=backend), model):
        model.zero_grad()
        output = run(x)
        output.square().mean().backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((output.detach(), grads))
    (output, grads), (expected, expected_grads) = results
    torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4 * expected.std().item())
    assert grads.keys() == expected_grads.keys()
    largest = max(grad.norm().item() for grad in expected_grads.values())
    for name, grad in expected_grads.items():
        assert (grads[name] - grad).norm() <= 1e-4 * largest, name
