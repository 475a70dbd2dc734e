"""Attention by matrix products against torch's own."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.training.cpu import attention
from ssl_vit.training.cpu.attention import attend
from ssl_vit.training.cpu.bfloat16 import OURS, OurWays, lean_bfloat16

HEADS = 2


def tensors(tokens: int, keys: int, kind: torch.dtype = torch.float64) -> list[Tensor]:
    """Queries, keys and values [5, HEADS, N, 4], not contiguous, as they come from one linear layer."""
    torch.manual_seed(0)
    made = [torch.randn(5, count, HEADS, 4, dtype=kind).transpose(1, 2) for count in (tokens, keys, keys)]
    return [each.requires_grad_() for each in made]


def additive(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


MASKS = {
    "none": lambda n, m: None,
    "all alike": lambda n, m: additive(n, m),
    "by head": lambda n, m: additive(1, HEADS, n, m),
    "by image": lambda n, m: additive(5, 1, n, m),
    "each": lambda n, m: additive(5, HEADS, n, m),
    "yes or no": lambda n, m: torch.rand(5, 1, n, m) > 0.3,
}


@pytest.mark.parametrize("cells", [1, 1 << 19])
@pytest.mark.parametrize(("tokens", "keys"), [(7, 7), (3, 17)])
@pytest.mark.parametrize("mask", MASKS)
def test_values_and_gradients_are_torchs(
    mask: str, tokens: int, keys: int, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "CELLS", cells)
    inputs, bias = tensors(tokens, keys), MASKS[mask](tokens, keys)
    wanted = F.scaled_dot_product_attention(*inputs, attn_mask=bias, scale=0.7)
    found = attend(*inputs, attn_mask=bias, scale=0.7)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    learnt = [*inputs, *([bias] if bias is not None and bias.requires_grad else [])]
    weights = torch.randn_like(wanted)
    for ours, theirs in zip(
        torch.autograd.grad((found * weights).sum(), learnt),
        torch.autograd.grad((wanted * weights).sum(), learnt),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_bfloat16_is_as_near_to_float32_as_torchs_own_kernel() -> None:
    inputs = [each.detach().float() for each in tensors(50, 50)]
    exact = F.scaled_dot_product_attention(*inputs)
    rounded = [each.bfloat16() for each in inputs]
    ours = (attend(*rounded).float() - exact).norm()
    theirs = (F.scaled_dot_product_attention(*rounded).float() - exact).norm()
    assert ours < 1.5 * theirs


@pytest.mark.parametrize("kwargs", [{"is_causal": True}, {"dropout_p": 1.0}])
def test_what_it_does_not_know_is_left_to_torch(kwargs: dict[str, float]) -> None:
    inputs = tensors(7, 7)
    torch.testing.assert_close(attend(*inputs, **kwargs), F.scaled_dot_product_attention(*inputs, **kwargs))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224"])  # the second has position biases
def test_a_network_calls_it_in_bfloat16_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And computes what it would compute without."""
    size = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 4}
    model, calls = timm.create_model(name, num_classes=0, **size), []
    images, device = torch.randn(2, 3, 64, 64), torch.device("cpu")

    def counted(*args: object, **kwargs: object) -> Tensor:
        calls.append(1)
        return attend(*args, **kwargs)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setitem(OURS, F.scaled_dot_product_attention, counted)
    with lean_bfloat16(device):
        model(images)
    assert not calls
    with torch.autocast("cpu", torch.bfloat16):
        wanted = model(images)
        with lean_bfloat16(device):
            found = model(images)
    assert len(calls) == 2
    assert (found - wanted).norm() < 0.02 * wanted.norm()
    assert not isinstance(torch.overrides._get_current_function_mode(), OurWays)
