"""A training step of MaskFormer beside transformers' own, in turns: the same Swin-T, images, segments, threads.

    python benchmarks/dense.py [--size 224] [--batch 2] [--rounds 10]

Both train with the losses of all decoder layers, AdamW, in float32, on whatever device torch has. The ratio is theirs
over ours: above 1 ours is faster.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

from ssl_vit.backbones import create_backbone
from ssl_vit.data.segment_scenes import SegmentScene
from ssl_vit.segmenters.maskformer import MaskFormer

CLASSES = 150


def scenes(batch: int, size: int) -> list[SegmentScene]:
    """Images of noise, each divided into blocks of 8 classes."""
    rng = torch.Generator().manual_seed(0)
    found = []
    for index in range(batch):
        image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=rng)
        blocks = torch.randint(0, 8, (1, 1, 7, 7), generator=rng).float()
        segments = nn.functional.interpolate(blocks, (size, size), mode="nearest")[0, 0].to(torch.int16)
        labels = torch.randperm(CLASSES, generator=rng)[:8]
        found.append(SegmentScene(index, image, (size, size), segments, labels, (size, size), None, []))
    return found


def theirs(size: int) -> nn.Module:
    """transformers' MaskFormer for ADE20K with a Swin-T, with random weights."""
    from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation, SwinConfig

    swin = SwinConfig(image_size=size, out_features=["stage1", "stage2", "stage3", "stage4"], drop_path_rate=0.0)
    config = MaskFormerConfig(
        backbone_config=swin, decoder_config=DetrConfig(), num_labels=CLASSES, use_auxiliary_loss=True
    )
    model: nn.Module = MaskFormerForInstanceSegmentation(config)
    return model


def main() -> None:
    """Alternate, and print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seen = scenes(args.batch, args.size)
    backbone = create_backbone("swin_tiny_patch4_window7_224", image_size=args.size)
    ours, other = MaskFormer(backbone, [False] * CLASSES).to(device).train(), theirs(args.size).to(device).train()
    masks = [(scene.segments == torch.arange(8)[:, None, None]).float().to(device) for scene in seen]
    labels = [scene.labels.to(device) for scene in seen]

    def our_loss() -> Tensor:
        return torch.stack(list(ours.losses(seen).values())).sum()

    def their_loss() -> Tensor:
        loss: Tensor = other(ours.images(seen), mask_labels=masks, class_labels=labels).loss
        return loss

    optimizers = [torch.optim.AdamW(model.parameters(), 1e-4) for model in (ours, other)]
    times: list[list[float]] = [[], []]
    for round_ in range(args.rounds + 1):
        for place, loss in enumerate((our_loss, their_loss)):
            started = time.perf_counter()
            optimizers[place].zero_grad()
            loss().backward()  # type: ignore[no-untyped-call]  # torch has no types for it
            optimizers[place].step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_:  # the first is to warm up
                times[place].append(time.perf_counter() - started)
    own, their = (statistics.median(each) for each in times)
    print(f"MaskFormer, Swin-T, {args.batch} x {args.size} pixels, {args.rounds} rounds on {device}")
    print(f"ours {1000 * own:.0f} ms, transformers {1000 * their:.0f} ms a step: {their / own:.2f}x", flush=True)


if __name__ == "__main__":
    main()
