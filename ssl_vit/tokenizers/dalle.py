"""DALL-E's discrete VAE (2102.12092), whose encoder made BEiT's visual words, is read from a local file.

Layers have the names of the released weights.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.checkpoints.reader import read_document, tensors
from ssl_vit.errors import UserError
from ssl_vit.tokenizers.tokenizer import Grid, Tokenizer

CODES = 8192
CELL = 8  # pixels of a word: the encoder halves the image three times
MARGIN = 0.1  # pixels are squeezed into [0.1, 0.9] for a loss on the open interval (section A.3)


class Conv(nn.Module):
    """A convolution that keeps the size."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel) * (inputs * kernel**2) ** -0.5)
        self.b = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [B, inputs, H, W] to [B, outputs, H, W]."""
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class DalleBlock(nn.Module):
    """Four convolutions stand beside a shortcut; ``gain`` keeps the sum of all blocks in bounds."""

    def __init__(self, inputs: int, outputs: int, kernels: Sequence[int], gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.id_path = Conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        widths = [inputs, *[outputs // 4] * 3, outputs]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, kernel in enumerate(kernels):
            layers[f"relu_{i + 1}"] = nn.ReLU()
            layers[f"conv_{i + 1}"] = Conv(widths[i], widths[i + 1], kernel)
        self.res_path = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H, W]."""
        out: Tensor = self.id_path(x) + self.gain * self.res_path(x)
        return out


class _Coder(nn.Module):
    """Four groups of two blocks between two convolutions; the first three groups change the resolution."""

    def __init__(self, first: Conv, widths: Sequence[int], kernels: Sequence[int], resize: nn.Module, out: int) -> None:
        super().__init__()
        block = partial(DalleBlock, kernels=kernels, gain=1 / (2 * (len(widths) - 1)) ** 2)
        parts: OrderedDict[str, nn.Module] = OrderedDict(input=first)
        for i, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            group: OrderedDict[str, nn.Module] = OrderedDict(
                block_1=block(inputs, outputs), block_2=block(outputs, outputs)
            )
            if i < len(widths) - 1:
                group["resize"] = resize
            parts[f"group_{i}"] = nn.Sequential(group)
        parts["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv(widths[-1], out, 1)))
        self.blocks = nn.Sequential(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Maps in, maps out."""
        out: Tensor = self.blocks(x)
        return out


class DalleEncoder(_Coder):
    """Pixels in [0.1, 0.9] [B, 3, 8 h, 8 w] become logits of the words [B, 8192, h, w]; 53,786,240 parameters."""

    def __init__(self) -> None:
        widths = [256, 256, 512, 1024, 2048]
        super().__init__(Conv(3, 256, 7), widths, (3, 3, 3, 1), nn.MaxPool2d(2), CODES)


class DalleDecoder(_Coder):
    """Words one-hot [B, 8192, h, w] become logits of pixels and scales [B, 6, 8 h, 8 w]; 43,829,766 parameters."""

    def __init__(self) -> None:
        widths = [128, 2048, 1024, 512, 256]
        super().__init__(Conv(CODES, 128, 1), widths, (1, 3, 3, 3), nn.Upsample(scale_factor=2), 6)


class Dalle(Tokenizer):
    """The word of a patch is the likeliest of 8,192, from the image at 8 pixels a patch, as in BEiT (2106.08254)."""

    codes = CODES

    def __init__(self, weights: str | Path, mean: Sequence[float], std: Sequence[float]) -> None:
        """weights: a file with the encoder's state dict.

        Raises:
            UserError: the file can't be read safely, or isn't that encoder's.
        """
        super().__init__(mean, std)
        with torch.device("meta"):
            self.encoder = DalleEncoder()
        self.encoder.load_state_dict(read_encoder(weights), assign=True)
        self.requires_grad_(False)

    def forward(self, images: Tensor, grid: Grid) -> Tensor:
        """Turn normalised images [B, 3, S, S] into tokens int64 [B, *grid]."""
        size = (CELL * grid[0], CELL * grid[1])
        pixels = F.interpolate(self.unit(images), size, mode="bicubic", antialias=True).clamp(0, 1)
        logits: Tensor = self.encoder((1 - 2 * MARGIN) * pixels + MARGIN)
        return logits.argmax(1)


def read_encoder(path: str | Path) -> dict[str, Tensor]:
    """Read the encoder's weights in float32; UserError names the first that is missing, left over or misshapen."""
    with torch.device("meta"):
        wanted = DalleEncoder().state_dict()
    file, document = read_document(Path(path))
    found = tensors(document)
    for name in (*wanted, *found):
        shapes = [list(side[name].shape) if name in side else None for side in (wanted, found)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"method.tokenizer_weights: {file}: {name} is {shapes[1] or 'missing'}, DALL-E's encoder has "
                f"{shapes[0] or 'no such weight'}; give the state_dict of its encoder.pkl"
            )
    return {name: tensor.float() for name, tensor in found.items()}
