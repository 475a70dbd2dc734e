"""ViP, the Vision Permutator (arXiv:2106.12368): rows, columns and channels are mixed side by side.

Channels are cut into segments. One branch mixes the places of a column together with the channels of a segment, one the
places of a row, one the channels alone; the image weighs the three. So places keep their two coordinates.

The matrices of rows and columns are learned for one grid, which ties the segments to it. For another they are
interpolated along the axis, where they read and where they write, so that a constant map passes as before. That costs
precision at other sizes than the trained one, more the further they are, and the smaller the map the fewer places a
matrix tells apart; the channels of a segment are left as they are. At the size that a network is built for nothing is
interpolated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers.helpers import to_2tuple
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from ssl_vit.backbones.layers import Size, init_linear, register_variants
from ssl_vit.backbones.mixing import PatchConv, ThreeWays, axis_resampling, cells
from ssl_vit.backbones.pyramid import NHWCStage, Pyramid, drop_path_rates
from ssl_vit.backbones.windows import MapBlock

MLP_RATIO = 3


class PermuteMLP(ThreeWays):
    """Columns, rows and channels [B, H, W, D] are mixed, the first two together with the channels of a segment.

    Args:
        dim: D.
        share: channels of a segment.
        built: (height, width) of the grid that the matrices are made for.
    """

    def __init__(self, dim: int, share: int, built: Size) -> None:
        super().__init__(dim)
        self.share, self.built = share, built
        self.mlp_h, self.mlp_w = (nn.Linear(places * share, places * share, bias=False) for places in built)

    def mix(self, x: Tensor, weight: Tensor, built: int) -> Tensor:
        """Mix [B, W, H, D] along H and the channels of each segment."""
        batch, width, places, dim = x.shape
        x = x.reshape(batch, width, places, dim // self.share, self.share).transpose(2, 3).flatten(3)
        if places != built:
            out, into = axis_resampling(built, places, weight), axis_resampling(places, built, weight)
            weight = weight.reshape(built, self.share, built, self.share)
            weight = torch.einsum("ah,gb,hsgt->asbt", out, into, weight)
            weight = weight.reshape(places * self.share, places * self.share)
        x = nn.functional.linear(x, weight)
        return x.reshape(batch, width, dim // self.share, places, self.share).transpose(2, 3).flatten(3)

    def along(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, H, W, D] -> two of [B, H, W, D]."""
        columns = self.mix(x.transpose(1, 2), self.mlp_h.weight, self.built[0]).transpose(1, 2)
        return columns, self.mix(x, self.mlp_w.weight, self.built[1])


class ViP(Pyramid):
    """Patches, one stage or two, a norm and a head on the mean of the last map.

    Args:
        depths, dims: of each stage.
        shares: channels of a segment, for each stage.
        patch_size: pixels a patch of the first stage.
        img_size: that the matrices are made for, pixels; they're interpolated for any other.
        head: `num_classes`, `global_pool`, `drop_rate` of :class:`Pyramid`.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        shares: Sequence[int],
        patch_size: int = 7,
        img_size: int | Size = 224,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        **head: Any,
    ) -> None:
        stages = []
        for i, (dim, rates) in enumerate(zip(dims, drop_path_rates(drop_path_rate, depths), strict=True)):
            built = cells(to_2tuple(img_size), patch_size << i)
            blocks = [MapBlock(dim, PermuteMLP(dim, shares[i], built), rate, MLP_RATIO) for rate in rates]
            stages.append(NHWCStage(PatchConv(dims[i - 1], dim, 2) if i else nn.Identity(), blocks))
        stem, norm = PatchConv(in_chans, dims[0], patch_size), LayerNorm2d(dims[-1], eps=1e-5)
        super().__init__(stem, stages, dims, stride=patch_size, norm=norm, in_chans=in_chans, **head)
        init_linear(self)


def load_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint of the authors' code to our names: its stages of one resolution are one of ours."""
    found = [re.match(r"network\.(\d+)\.(\d+|proj)\.", name) for name in state_dict]
    parts = sorted({(int(m[1]), -1 if m[2] == "proj" else int(m[2])) for m in found if m})
    names, stage, block = {}, 0, 0
    for part, place in parts:
        if place < 0:
            stage, block = stage + 1, 0
            names[f"network.{part}."] = f"stages.{stage}.downsample."
        else:
            names[f"network.{part}.{place}."] = f"stages.{stage}.blocks.{block}."
            block += 1
    renamed = {}
    for name, weight in state_dict.items():
        start = re.match(r"network\.\d+\.(\d+\.)?|", name)
        prefix = start[0] if start else ""
        ours = names.get(prefix, prefix) + name.removeprefix(prefix)
        renamed[re.sub(r"^head\.", "head.fc.", re.sub(r"^patch_embed\.", "stem.", ours))] = weight
    return renamed


PLAIN: dict[str, dict[str, Any]] = {"vip_s14": {"depths": (18,), "dims": (384,), "shares": (24,), "patch_size": 14}}
PYRAMIDS: dict[str, dict[str, Any]] = {
    "vip_s7": {"depths": (4, 14), "dims": (192, 384), "shares": (6, 24)},
    "vip_m7": {"depths": (7, 17), "dims": (256, 512), "shares": (8, 32)},
    "vip_l7": {"depths": (8, 28), "dims": (256, 512), "shares": (8, 32)},
}
for variants, levels in ((PLAIN, 1), (PYRAMIDS, 2)):
    register_variants(
        __name__,
        ViP,
        variants,
        kind="mlp",
        out_indices=levels,
        paper_ids="arXiv:2106.12368",
        first_conv="stem.proj",
        classifier="head.fc",
    )
