"""Linear layers that make their input again against torch's own, which keep it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.training.cpu import bfloat16, remade
from ssl_vit.training.cpu.attention import attend
from ssl_vit.training.cpu.bfloat16 import lean_bfloat16

KINDS = {"autograd": F, "ours": remade}
NETWORKS: dict[str, Callable[..., Tensor]] = {  # of functions, x [..., 8], weight and bias [8], maps to 5 and to 8
    "gelu": lambda f, x, w, b, out, back: f.linear(f.gelu(x * w + b), out, out[:, 0]),
    "approximate": lambda f, x, w, b, out, back: f.linear(f.gelu(x * w + b, approximate="tanh"), out),
    "read twice": lambda f, x, w, b, out, back: (
        ((seen := f.gelu(x * w + b)) + f.linear(seen, back) * f.linear(seen, back.mT)).square() @ out.mT
    ),
    "a norm between": lambda f, x, w, b, out, back: f.linear(F.layer_norm(f.gelu(x * w + b), (8,), w, b), out),
    "one after the other": lambda f, x, w, b, out, back: f.linear(f.gelu(f.linear(f.gelu(x * w), back, b)), out),
    "changed in place between": lambda f, x, w, b, out, back: f.linear(f.gelu(x * w + b).mul_(3), out),
    "weights dropped between": lambda f, x, w, b, out, back: f.linear(F.dropout(f.gelu(x * w + b), 0.5), out),
}


def given(*shape: int) -> list[Tensor]:
    torch.manual_seed(0)
    made = [torch.randn(s, dtype=torch.float64) for s in (shape, (8,), (8,), (5, 8), (8, 8))]
    return [each.requires_grad_() for each in made]


def gradients(name: str, functions: object, inputs: list[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
    torch.manual_seed(1)
    out = NETWORKS[name](functions, *inputs)
    learnt = [each for each in inputs if each.requires_grad]
    return out, list(torch.autograd.grad(out.square().sum(), learnt, allow_unused=True))


@pytest.mark.parametrize("frozen", [(), (0,), (1, 2), (3,), (1, 2, 3, 4)])
@pytest.mark.parametrize("shape", [(6, 8), (2, 3, 8), (2, 2, 3, 8)])
@pytest.mark.parametrize("name", NETWORKS)
def test_values_and_gradients_are_torchs(name: str, shape: tuple[int, ...], frozen: tuple[int, ...]) -> None:
    inputs = given(*shape)
    for place in frozen:
        inputs[place].requires_grad_(False)
    (wanted, theirs), (found, ours) = (gradients(name, functions, inputs) for functions in KINDS.values())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_without_gradients_it_is_torchs() -> None:
    inputs = given(2, 3, 8)
    with torch.no_grad():
        wanted, found = (NETWORKS["one after the other"](functions, *inputs) for functions in KINDS.values())
    assert torch.equal(wanted, found)


def test_backward_may_be_asked_twice() -> None:
    inputs = given(2, 3, 8)
    out = NETWORKS["one after the other"](remade, *inputs).sum()
    first = torch.autograd.grad(out, inputs, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(out, inputs), strict=True))


def test_what_changed_in_place_is_noticed() -> None:
    x = torch.randn(3, 8, requires_grad=True) * 1
    out = remade.linear(remade.gelu(x), torch.ones(5, 8, requires_grad=True))
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


class Pass(NamedTuple):
    out: Tensor
    gradient: Tensor
    kept: int  # bytes for backward, with weights


def passed(model: nn.Module) -> Pass:
    """Eight images forward and backward."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    torch.manual_seed(1)
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
        lean_bfloat16(torch.device("cpu")),
    ):
        out = model(torch.randn(8, 3, 96, 96)).float()
    (out * torch.randn_like(out)).sum().backward()
    return Pass(
        out, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), sum(kept.values())
    )


def test_a_vit_keeps_less_and_its_gradient_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=0, depth=4)
    lean = passed(model)
    monkeypatch.setattr(bfloat16, "OURS", {F.scaled_dot_product_attention: attend})
    plain = passed(model)
    assert torch.equal(lean.out, plain.out)
    assert lean.kept < 0.9 * plain.kept, "a third of it are weights"
    torch.testing.assert_close(lean.gradient, plain.gradient, rtol=0, atol=0)
