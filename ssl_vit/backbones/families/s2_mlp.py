"""S²-MLP, the spatial-shift MLP architecture (arXiv:2106.07477).

Two linear layers over channels, and between them a quarter of the channels moves one place down, a quarter up, a
quarter right and a quarter left; places at the border keep their own value. Patches of 16 pixels, no positions, no norm
at the end.

No weight depends on the size of the image; on a grid of one place along an axis nothing moves along it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.backbones.layers import Size, init_linear, register_variants, rename_keys
from ssl_vit.backbones.mixing import PatchConv, shift_quarters
from ssl_vit.backbones.pyramid import NHWCStage, Pyramid, drop_path_rates
from ssl_vit.backbones.windows import MapBlock


class SpatialShift(nn.Module):
    """A linear layer, GELU, the shift, a linear layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim)
        self.fc2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]."""
        x = self.fc2(shift_quarters(F.gelu(self.fc1(x))))
        return x


class S2MLP(Pyramid):
    """Patches, blocks at one resolution, and a head on the mean of the last map.

    Args:
        depth, embed_dim: of the blocks.
        patch_size: pixels.
        img_size: taken for timm's sake; nothing in the family depends on it.
        head: `num_classes`, `global_pool`, `drop_rate` of :class:`Pyramid`.
    """

    def __init__(
        self,
        depth: int,
        embed_dim: int,
        patch_size: int = 16,
        img_size: int | Size = 224,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        **head: Any,
    ) -> None:
        (rates,) = drop_path_rates(drop_path_rate, (depth,))
        blocks = [MapBlock(embed_dim, SpatialShift(embed_dim), rate) for rate in rates]
        stem, stages = PatchConv(in_chans, embed_dim, patch_size), [NHWCStage(nn.Identity(), blocks)]
        super().__init__(stem, stages, [embed_dim], stride=patch_size, in_chans=in_chans, **head)
        init_linear(self)


def load_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint of Jittor-MLP, whose code in PyTorch is the one that is public, to our names."""
    return rename_keys(
        state_dict,
        (r"^stages\.0\.0\.", "stem.proj."),
        (r"^stages\.0\.1\.model\.(\d+)\.0\.norm\.", r"stages.0.blocks.\1.norm1."),
        (r"^stages\.0\.1\.model\.(\d+)\.1\.norm\.", r"stages.0.blocks.\1.norm2."),
        (
            r"^stages\.0\.1\.model\.(\d+)\.(\d)\.fn\.(\d)\.",
            lambda m: f"stages.0.blocks.{m[1]}.{('attn', 'mlp')[int(m[2])]}.fc{1 if m[3] == '0' else 2}.",
        ),
        (r"^mlp_head\.1\.", "head.fc."),
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "s2mlp_deep": {"depth": 36, "embed_dim": 384},
    "s2mlp_wide": {"depth": 12, "embed_dim": 768},
}
register_variants(
    __name__,
    S2MLP,
    VARIANTS,
    kind="mlp",
    out_indices=1,
    paper_ids="arXiv:2106.07477",
    first_conv="stem.proj",
    classifier="head.fc",
)
