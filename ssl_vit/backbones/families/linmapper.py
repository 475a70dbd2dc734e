"""LinMapper (arXiv 2107.02174): a Swin Transformer whose window attention is replaced by fixed maps over the window.

The layout is Swin's: windows of 7 x 7 tokens, shifted by 3 in every second block. Inside a window values are mixed by
a learned matrix over its 49 places for each head (linear), by two with a GELU between them (mlp), or by a depthwise
7 x 7 convolution (depthwise), all of which ignore what the tokens hold.

There is no official code, and the paper leaves open how channels share a matrix (the count of its first version,
25.4 M, fits no simple choice). Chosen here: one matrix for each of Swin's heads (24.3 M), between Swin's linear layers
for values and output; hidden width 49 for mlp. Shifted windows that reach beyond the map see zeros there, since a fixed
map can't mask. At other sizes than the built one maps are padded with zeros to multiples of 7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from ssl_vit.backbones.layers import merge_heads, register_variants, split_heads
from ssl_vit.backbones.pyramid import SwinLayout
from ssl_vit.backbones.windows import MapBlock, from_windows, to_windows

WINDOW = (7, 7)  # cells
SHIFT = 3  # cells
PLACES = WINDOW[0] * WINDOW[1]


class LinearMixer(nn.Module):
    """A matrix over the places of a window for each head."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(trunc_normal_(torch.zeros(heads, PLACES, PLACES), std=0.02))
        self.bias = nn.Parameter(torch.zeros(heads, PLACES, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[windows, 49, D] -> [windows, 49, D]."""
        return merge_heads(self.weight @ split_heads(x, self.heads) + self.bias)


class DepthwiseMixer(nn.Module):
    """A depthwise convolution as large as the window, zeros around it."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, WINDOW, padding=(WINDOW[0] // 2, WINDOW[1] // 2), groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """[windows, 49, D] -> [windows, 49, D]."""
        maps: Tensor = self.conv(x.transpose(1, 2).reshape(x.shape[0], -1, *WINDOW))
        return maps.flatten(2).transpose(1, 2)


def mixer(kind: str, dim: int, heads: int) -> nn.Module:
    """Build one of the substitutes for attention; ValueError names them."""
    if kind == "linear":
        return LinearMixer(dim, heads)
    if kind == "mlp":
        return nn.Sequential(LinearMixer(dim, heads), nn.GELU(), LinearMixer(dim, heads))
    if kind == "depthwise":
        return DepthwiseMixer(dim, heads)
    raise ValueError(f"mixer {kind!r} is unknown; it is 'linear', 'mlp' or 'depthwise'")


class WindowMixer(nn.Module):
    """Values, mixed in windows, and an output layer; `shifted` windows start 3 cells into the map."""

    def __init__(self, dim: int, heads: int, kind: str, shifted: bool) -> None:
        super().__init__()
        self.shifted = shifted
        self.value = nn.Linear(dim, dim)
        self.mixer = mixer(kind, dim, heads)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]."""
        _, height, width, _ = x.shape
        # a map of one window is never shifted, as in Swin
        top, left = (
            side - SHIFT if self.shifted and whole > side else 0
            for side, whole in zip(WINDOW, (height, width), strict=True)
        )
        values = F.pad(self.value(x), (0, 0, left, 0, top, 0))
        mixed = self.mixer(to_windows(values, WINDOW))
        x = from_windows(mixed, WINDOW, (height + top, width + left))[:, top:, left:]
        x = self.proj(x)
        return x


class LinMapper(SwinLayout):
    """Swin's layout.

    Args:
        mixer: what replaces attention: "linear", "mlp" or "depthwise".
        heads: of each stage.
        layout: of :class:`SwinLayout`.
    """

    def __init__(self, mixer: str = "linear", heads: Sequence[int] = (3, 6, 12, 24), **layout: Any) -> None:
        def block(stage: int, place: int, dim: int, drop_path: float) -> nn.Module:
            return MapBlock(dim, WindowMixer(dim, heads[stage], mixer, shifted=place % 2 == 1), drop_path)

        super().__init__(block, **layout)


def load_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights as they are: there is no official checkpoint."""
    return dict(weights)


_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)},
}
_KINDS = {"linmapper_{}": "linear", "linmapper_{}_mlp": "mlp", "linmapper_{}_depthwise": "depthwise"}

VARIANTS = {name.format(size): _SIZES[size] | {"mixer": kind} for size in _SIZES for name, kind in _KINDS.items()}

register_variants(
    __name__,
    LinMapper,
    VARIANTS,
    kind="mlp",
    paper_ids="arXiv:2107.02174",
    first_conv="stem.proj",
    classifier="head.fc",
)
