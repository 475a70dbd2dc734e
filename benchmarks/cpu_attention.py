"""Attention on a CPU: torch's fused kernel against plain matrix products, alternating, in float32 and bfloat16.

    python benchmarks/cpu_attention.py [ROUNDS]

Prints CPU seconds of a forward and backward of a small ViT (256 images of 32 pixels), medians, and the ratio.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from ssl_vit.backbones import create_backbone
from ssl_vit.training.speed import spell_out_attention

ARGS = {"patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4, "global_pool": "avg"}


def step(backbone: torch.nn.Module, images: torch.Tensor, bfloat16: bool) -> tuple[float, float]:
    """CPU seconds, and the loss, which must not depend on the kernel."""
    start = time.process_time()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        loss = backbone(images).pooled.float().square().mean()
    loss.backward()
    return time.process_time() - start, float(loss)


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    fused = create_backbone("vit_tiny_patch16_224", image_size=32, model_args=ARGS)
    plain = create_backbone("vit_tiny_patch16_224", image_size=32, model_args=ARGS)
    plain.load_state_dict(fused.state_dict())
    spell_out_attention(plain)
    images = torch.randn(256, 3, 32, 32)
    for bfloat16 in (False, True):
        seconds: dict[str, list[float]] = {"fused": [], "plain": []}
        losses = {}
        for _ in range(rounds + 1):
            for name, backbone in (("fused", fused), ("plain", plain)):
                spent, losses[name] = step(backbone, images, bfloat16)
                seconds[name].append(spent)
        a, b = (statistics.median(seconds[name][1:]) for name in ("fused", "plain"))
        difference = abs(losses["fused"] - losses["plain"]) / losses["fused"]
        kind = "bfloat16" if bfloat16 else "float32"
        print(f"{kind}: fused {a:.3f} s, plain {b:.3f} s, ratio {a / b:.2f}; losses differ by {difference:.1e}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
