"""DINO's last layer and loss: ours, with the gradient in closed form, against plain autograd; on one thread.

    python benchmarks/step.py [--images 8] [--prototypes 65536] [--rounds 5] [--precision bf16-mixed|32-true]

2 global and 8 local crops an image, from the head's bottleneck (256) to gradients of it and of the prototypes. Prints
CPU time (medians of alternating rounds) and the most memory that each takes beside its inputs, in a fresh process.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ssl_vit.methods.heads import Prototypes
from ssl_vit.methods.prototype_loss import cross_view_loss

CROPS, TEMP = 10, 0.1


def plain(vectors: Tensor, prototypes: Prototypes, targets: Tensor, temp: float) -> Tensor:
    """Logits by weight norm, a log-softmax and a sum for every pair of crops, as the official code has them."""
    weight = normalize(prototypes.weight_v, dim=1) * prototypes.weight_g
    logits = (vectors @ weight.T).float() / temp
    pairs = [(t, v) for t in range(len(targets)) for v in range(len(vectors)) if v != t]
    return torch.stack([-(targets[t] * logits[v].log_softmax(-1)).sum(-1).mean() for t, v in pairs]).mean()


def lean(vectors: Tensor, prototypes: Prototypes, targets: Tensor, temp: float) -> Tensor:
    """Row norms folded into the logits, logsumexp - q · s, and autograd for the rest."""
    logits = prototypes(vectors).float() / temp
    agreement = torch.einsum("tbk,vbk->tvb", targets, logits)
    other = ~torch.eye(len(targets), len(vectors), dtype=torch.bool)
    return (logits.logsumexp(-1) - agreement)[other].mean()


WAYS: dict[str, Callable[[Tensor, Prototypes, Tensor, float], Tensor]] = {
    "plain": plain,
    "lean": lean,
    "ours": cross_view_loss,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=("bf16-mixed", "32-true"), default="bf16-mixed")
    parser.add_argument("--only", choices=tuple(WAYS), help="print the memory of one way")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    prototypes = Prototypes(256, args.prototypes)
    vectors = normalize(torch.randn(CROPS, args.images, 256), dim=-1).requires_grad_()
    targets = torch.randn(2, args.images, args.prototypes).div_(0.04).softmax(-1)

    def run(way: Callable[[Tensor, Prototypes, Tensor, float], Tensor]) -> tuple[float, Tensor]:
        vectors.grad = prototypes.weight_v.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16-mixed"):
            loss = way(vectors, prototypes, targets, TEMP)
        loss.backward()
        assert vectors.grad is not None
        return float(loss.detach()), vectors.grad

    if args.only:
        before = resident()
        run(WAYS[args.only])
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 1e6)
        return
    spent: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(args.rounds + 1):
        for name, way in WAYS.items():
            start = time.process_time()
            run(way)
            if number:  # the first round warms up
                spent[name].append(1000 * (time.process_time() - start))
    print(f"{args.images} images, {args.prototypes} prototypes, {args.precision}, medians of {args.rounds}:")
    wanted, gradient = run(plain)
    for name, values in spent.items():
        loss, found = run(WAYS[name])
        ratio = statistics.median([b / a for a, b in zip(values, spent["plain"], strict=True)])
        off = float((found - gradient).norm() / gradient.norm())
        memory = peak(name, args)
        print(
            f"  {name:6}{statistics.median(values):9.1f} ms, {ratio:5.2f} x plain, {memory:7.0f} MB; "
            f"loss off by {abs(loss - wanted):.1e}, gradient by {off:.1e} of its length"
        )


def peak(name: str, args: argparse.Namespace) -> float:
    """The most memory, in MB, that a way adds to what a fresh process holds."""
    line = [sys.executable, __file__, "--only", name]
    for option in ("images", "prototypes", "precision"):
        line += [f"--{option}", str(getattr(args, option))]
    return float(subprocess.run(line, check=True, capture_output=True, text=True).stdout)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    main()
