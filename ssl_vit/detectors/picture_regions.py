"""The figure shows what a detector without labels learns from, and finds by now: regions beside its own boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_vit.backbones.backbone import Colour
from ssl_vit.detectors.detector import best
from ssl_vit.detectors.networks import Pretrainable
from ssl_vit.drawing import Boxed, boxes_figure
from ssl_vit.files import write_atomically

SHOWN = 8  # boxes of each kind on an image: more can't be told apart


@torch.no_grad()
def draw_regions(
    detector: Pretrainable, images: Tensor, boxes: Tensor, colours: tuple[Colour, Colour], path: Path
) -> None:
    """Write a PNG of images [B, 3, S, S], normalised by `colours` (mean, deviation), with the first regions of each.

    boxes: [B, K, 4], corners as shares of the image, nan where there are fewer. Beside them stand the boxes that the
    detector is surest of. The detector is left in evaluation mode.
    """
    side = images.shape[-1]
    sizes = torch.tensor([[side, side]] * len(images))
    found = best(detector.eval()(images), sizes, focal=detector.focal, count=SHOWN)
    drawn = []
    for image, regions, own in zip(shown(images, colours), boxes.cpu().numpy(), found, strict=True):
        proposed = side * regions[~np.isnan(regions).any(1)][:SHOWN]
        scores = [f"{score:.2f}" for score in own.scores.tolist()]
        drawn.append(Boxed(image, proposed, [""] * len(proposed), own.boxes.cpu().numpy(), scores))
    figure = boxes_figure(drawn, "Regions", through="what was proposed")
    write_atomically(path, lambda staged: figure.savefig(staged, format="png"))


def shown(images: Tensor, colours: tuple[Colour, Colour]) -> NDArray[np.uint8]:
    """Return the pixels [B, S, S, 3] of images [B, 3, S, S] that were normalised by `colours` (mean, deviation)."""
    mean, std = (torch.tensor(colour, device=images.device).view(3, 1, 1) for colour in colours)
    pixels: NDArray[np.uint8] = (
        (255 * (images * std + mean)).clamp(0, 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    )
    return pixels
