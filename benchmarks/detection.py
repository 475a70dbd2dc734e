"""Deformable attention as ssl_vit does it against the straightforward way: all samples of all levels, then their sum.

    python benchmarks/detection.py [ROUNDS]

Both sample with torch's grid_sample. Prints seconds of a forward and backward (medians, alternating), their ratio, and
the bytes that each keeps for its backward pass.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.detectors.deformable_attention import Sizes, sample

SIZES: Sizes = [(40, 40), (20, 20), (10, 10), (5, 5)]  # of an image of 320 pixels
HEADS, DIM, POINTS = 8, 32, 4


def straightforward(value: Tensor, sizes: Sizes, points: Tensor, weights: Tensor) -> Tensor:
    """Stack the samples of every level, [B * heads, d, Q, L * P], multiply and sum."""
    b, _, heads, d = value.shape
    seen, start = [], 0
    for level, (height, width) in enumerate(sizes):
        cells = value[:, start : start + height * width]
        start += height * width
        map_ = cells.flatten(2).transpose(1, 2).reshape(b * heads, d, height, width)
        grid = (2 * points[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        seen.append(F.grid_sample(map_, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    share = weights.transpose(1, 2).reshape(b * heads, 1, points.shape[1], -1)
    total = (torch.stack(seen, dim=-2).flatten(-2) * share).sum(-1)
    return total.view(b, heads * d, -1).transpose(1, 2)


def run(
    function: Callable[[Tensor, Sizes, Tensor, Tensor], Tensor], inputs: tuple[Tensor, Tensor, Tensor]
) -> tuple[float, int, Tensor]:
    """Seconds, bytes kept for the backward pass beside the inputs, and the gradient of the points."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    value, points, weights = (x.detach().requires_grad_() for x in inputs)
    start = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = function(value, SIZES, points, weights)
    output.square().sum().backward()
    seconds = time.perf_counter() - start
    given = {x.untyped_storage().data_ptr() for x in (value, points, weights)}
    assert points.grad is not None
    return seconds, sum(size for place, size in kept.items() if place not in given), points.grad


def main(rounds: int) -> None:
    torch.manual_seed(0)
    cells = sum(h * w for h, w in SIZES)
    value = torch.randn(2, cells, HEADS, DIM)
    points = torch.rand(2, cells, HEADS, len(SIZES), POINTS, 2)
    weights = torch.rand(2, cells, HEADS, len(SIZES), POINTS)
    seconds: dict[str, list[float]] = {"ours": [], "straightforward": []}
    kept, gradient = {}, {}
    for _ in range(rounds + 1):
        for name, function in (("ours", sample), ("straightforward", straightforward)):
            spent, kept[name], gradient[name] = run(function, (value, points, weights))
            seconds[name].append(spent)
    a, b = (statistics.median(seconds[name][1:]) for name in ("ours", "straightforward"))
    apart = (gradient["ours"] - gradient["straightforward"]).abs().max() / gradient["straightforward"].abs().max()
    print(f"{cells} queries on {len(SIZES)} maps, 2 images: ours {a:.3f} s, straightforward {b:.3f} s, x{b / a:.2f}")
    print(
        f"kept for backward: ours {kept['ours'] / 1e6:.0f} MB, straightforward {kept['straightforward'] / 1e6:.0f} MB"
    )
    print(f"gradients differ by {apart:.1e} of the largest")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
