"""CycleMLP (arXiv:2107.10224): a pyramid whose linear layers look one place aside, each channel in its turn.

Channel after channel takes its value from the place itself, the next and the one before, along rows in one branch and
along columns in another; a third branch mixes channels alone. The image weighs the three. The cost is linear in the
size of the image. No weight depends on that size, so that smaller crops cost nothing in exactness; what lies outside
the image counts as zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from ssl_vit.backbones.layers import Size, init_linear, pad_to_multiple, register_variants, rename_keys
from ssl_vit.backbones.mixing import ThreeWays, shift_cycle
from ssl_vit.backbones.pyramid import NHWCStage, Pyramid, drop_path_rates
from ssl_vit.backbones.windows import MapBlock

TAPS = 3  # places that a cycle of channels looks at


class CycleFC(ThreeWays):
    """Linear layers over channels that look along rows, along columns and nowhere else, weighed by the image."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.sfc_h = nn.Linear(dim, dim)
        self.sfc_w = nn.Linear(dim, dim)

    def along(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, H, W, D] -> two of [B, H, W, D]."""
        return self.sfc_h(shift_cycle(x, TAPS, dim=2)), self.sfc_w(shift_cycle(x, TAPS, dim=1))


class OverlappingEmbed(nn.Module):
    """Overlapping squares of 7 x 7 pixels, 4 apart, become vectors."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, 7, stride=4, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D, H / 4, W / 4]."""
        x = self.proj(pad_to_multiple(x, 4))
        return x


class CycleMLP(Pyramid):
    """An overlapping stem, four stages, a norm and a head on the mean of the last map.

    Args:
        depths, dims, mlp_ratios: of each stage.
        img_size: taken for timm's sake; nothing in the family depends on it.
        head: `num_classes`, `global_pool`, `drop_rate` of :class:`Pyramid`.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int] = (64, 128, 320, 512),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        img_size: int | Size = 224,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        **head: Any,
    ) -> None:
        stages = []
        for i, (dim, rates) in enumerate(zip(dims, drop_path_rates(drop_path_rate, depths), strict=True)):
            blocks = [MapBlock(dim, CycleFC(dim), rate, mlp_ratios[i]) for rate in rates]
            down = nn.Conv2d(dims[i - 1], dim, 3, stride=2, padding=1) if i else nn.Identity()
            stages.append(NHWCStage(down, blocks))
        stem, norm = OverlappingEmbed(in_chans, dims[0]), LayerNorm2d(dims[-1], eps=1e-5)
        super().__init__(stem, stages, dims, norm=norm, in_chans=in_chans, **head)
        init_linear(self)


def load_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint of the authors' code to our names; its tables of offsets are no weights."""
    renamed = rename_keys(
        state_dict,
        (r"^patch_embed\.", "stem."),
        (
            r"^network\.(\d+)\.(?:(\d+)|proj)\.",
            lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}." if m[2] else f"stages.{int(m[1]) // 2 + 1}.downsample.",
        ),
        (r"^head\.", "head.fc."),
    )
    kept = {name: weight for name, weight in renamed.items() if not name.endswith(".offset")}
    return {
        name: torch.flatten(w, 1) if name.endswith(("sfc_h.weight", "sfc_w.weight")) else w for name, w in kept.items()
    }


VARIANTS: dict[str, dict[str, Any]] = {
    "cyclemlp_b1": {"depths": (2, 2, 4, 2)},
    "cyclemlp_b2": {"depths": (2, 3, 10, 3)},
    "cyclemlp_b3": {"depths": (3, 4, 18, 3), "mlp_ratios": (8, 8, 4, 4)},
    "cyclemlp_b4": {"depths": (3, 8, 27, 3), "mlp_ratios": (8, 8, 4, 4)},
    "cyclemlp_b5": {"depths": (3, 4, 24, 3), "dims": (96, 192, 384, 768)},
}
register_variants(
    __name__,
    CycleMLP,
    VARIANTS,
    kind="mlp",
    paper_ids="arXiv:2107.10224",
    first_conv="stem.proj",
    classifier="head.fc",
)
