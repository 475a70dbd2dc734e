"""Attention on a CPU in bfloat16: torch's fused kernel and timm's plain products against ours, alternating.

    python benchmarks/cpu_attention.py [ROUNDS]

Prints CPU milliseconds of a forward and backward for images of several numbers of tokens, medians, and how far our
gradient is from the fused kernel's.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.training.cpu.attention import attend

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
SHAPES = ((16, 3, 197, 64), (64, 3, 37, 64), (256, 4, 17, 32), (8, 16, 197, 32), (16, 6, 197, 64))  # B, H, N, d


def spelled_out(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """As timm writes it where it doesn't call the fused kernel."""
    return ((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)).softmax(-1) @ value


WAYS: dict[str, Attention] = {"fused": F.scaled_dot_product_attention, "plain": spelled_out, "ours": attend}


def step(attention: Attention, qkv: Tensor) -> tuple[float, Tensor]:
    """CPU milliseconds, and the gradient."""
    qkv = qkv.clone().requires_grad_()
    start = time.process_time()
    out = attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0)).transpose(1, 2).flatten(2)
    out.backward(out.detach())
    assert qkv.grad is not None
    return 1000 * (time.process_time() - start), qkv.grad.float()


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for images, heads, tokens, width in SHAPES:
        qkv = torch.randn(images, tokens, 3, heads, width, dtype=torch.bfloat16)
        spent: dict[str, list[float]] = {name: [] for name in WAYS}
        gradients = {}
        for _ in range(rounds + 1):
            for name, way in WAYS.items():
                milliseconds, gradients[name] = step(way, qkv)
                spent[name].append(milliseconds)
        medians = {name: statistics.median(values[1:]) for name, values in spent.items()}
        off = float((gradients["ours"] - gradients["fused"]).norm() / gradients["fused"].norm())
        row = ", ".join(f"{name} {value:.1f} ms" for name, value in medians.items())
        print(f"{images} x {heads} heads of {width}, {tokens} tokens: {row}; gradients differ by {off:.1e}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
