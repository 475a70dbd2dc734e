"""Cross Attention Transformer, CAT (arXiv 2106.05786): attention inside patches alternates with attention across them.

Inside: windows of 7 x 7 tokens (IPSA). Across: for every channel by itself, the map's windows attend to each other,
the 49 values of the channel in a window being its vector (CPSA). A unit is inside, across, inside.

At other sizes than the built one, positions are resized, the windows inside shrink until they tile the map, and the
map is padded to multiples of 7 for the attention across, whose layers have 49 inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.helpers import to_2tuple
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from ssl_vit.backbones.layers import PatchEmbed, register_variants, rename_keys, resize_positions, to_map
from ssl_vit.backbones.pyramid import SwinLayout
from ssl_vit.backbones.windows import MapBlock, WindowAttention, from_windows, to_windows

PATCH = 4  # pixels
WINDOW = 7  # cells


class CrossAttention(nn.Module):
    """Each channel by itself: windows attend to each other, one head, with the window's values as vectors (CPSA)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WINDOW**2, 3 * WINDOW**2)
        self.proj = nn.Linear(WINDOW**2, WINDOW**2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]."""
        window = (WINDOW, WINDOW)
        windows = (
            to_windows(x, window).view(x.shape[0], -1, WINDOW**2, x.shape[-1]).permute(0, 3, 1, 2)
        )  # [B, D, windows, 49]
        out = self.proj(F.scaled_dot_product_attention(*self.qkv(windows).chunk(3, dim=-1)))
        return from_windows(out.permute(0, 2, 3, 1).flatten(0, 1), window, (x.shape[1], x.shape[2]))


class PositionedPatches(PatchEmbed):
    """Patch embedding with learned positions."""

    def __init__(self, img_size: tuple[int, int], in_chans: int, dim: int) -> None:
        super().__init__(in_chans, dim, PATCH)
        self.built = (-(-img_size[0] // PATCH), -(-img_size[1] // PATCH))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.built[0] * self.built[1], dim))
        trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D, H / 4, W / 4]."""
        x = super().forward(x)
        size = (x.shape[2], x.shape[3])
        return x + to_map(resize_positions(self.pos_embed, self.built, size), size)


class CAT(SwinLayout):
    """Swin's layout, a unit of three blocks in place of each block.

    Args:
        heads: of the attention inside windows, for each stage.
        img_size: that the positions are made for, pixels; any other size runs.
        layout: of :class:`SwinLayout`.
    """

    def __init__(
        self, heads: Sequence[int] = (2, 4, 8, 16), img_size: int | tuple[int, int] = 224, **layout: Any
    ) -> None:
        def unit(stage: int, place: int, dim: int, drop_path: float) -> nn.Module:
            inside, again = (WindowAttention(dim, heads[stage], WINDOW) for _ in range(2))
            return nn.Sequential(*(MapBlock(dim, attn, drop_path) for attn in (inside, CrossAttention(), again)))

        super().__init__(unit, stem=partial(PositionedPatches, to_2tuple(img_size)), **layout)


def load_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint of linhezheng19/CAT to our names."""
    places = {"pre_ipsa": 0, "cpsa": 1, "post_ipsa": 2}
    return rename_keys(
        {name: weight for name, weight in weights.items() if not name.endswith("relative_position_index")},
        (r"^ape$", "stem.pos_embed"),
        (r"^patch_embed\.", "stem."),
        (r"^layers\.(\d)\.downsample", lambda match: f"stages.{int(match[1]) + 1}.downsample"),
        (
            r"^layers\.(\d)\.(\w+)_blocks\.(\d+)",
            lambda match: f"stages.{match[1]}.blocks.{match[3]}.{places[match[2]]}",
        ),
        (r"attn\.relative", "attn.position.relative"),
        (r"^head\.(weight|bias)", r"head.fc.\1"),
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "cat_tiny": {"embed_dim": 64, "depths": (1, 1, 3, 1), "heads": (2, 4, 8, 16)},
    "cat_small": {"embed_dim": 96, "depths": (1, 1, 3, 1), "heads": (3, 6, 12, 24)},
    "cat_base": {"embed_dim": 96, "depths": (1, 1, 6, 1), "heads": (3, 6, 12, 24)},
}

register_variants(
    __name__,
    CAT,
    VARIANTS,
    kind="transformer",
    paper_ids="arXiv:2106.05786",
    first_conv="stem.proj",
    classifier="head.fc",
)
