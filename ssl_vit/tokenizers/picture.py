"""The figure shows what a tokenizer keeps of images: the images above, what its words say of them below."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from ssl_vit.files import write_atomically
from ssl_vit.tokenizers.tokenizer import Grid, Tokenizer

SIDE = 96  # pixels at which an image is drawn, at least


@torch.no_grad()
def reconstructions(tokenizer: Tokenizer, images: Tensor, grid: Grid, path: Path) -> None:
    """Write a PNG of normalised images [B, 3, S, S] and of what is left of them; none where that can't be seen."""
    kept = tokenizer.picture(images, grid)
    if kept is None:
        return
    size = 2 * [max(SIDE, images.shape[-1])]
    rows = [torch.nn.functional.interpolate(x.cpu(), size, mode="nearest") for x in (tokenizer.unit(images), kept)]
    drawn = to_pil_image(make_grid(torch.cat(rows), nrow=len(images), padding=4, pad_value=1.0))
    write_atomically(path, lambda staged: drawn.save(staged, format="png"))
