"""PVT v1, the Pyramid Vision Transformer (arXiv:2102.12122).

A pyramid of four transformers. Attention stays affordable on the fine maps because keys and values come from a map
that a strided convolution has reduced (8, 4, 2, 1 times a side); a class token joins in the last stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers.helpers import to_2tuple
from timm.layers.mlp import Mlp
from timm.layers.pool1d import global_pool_nlc
from timm.layers.weight_init import trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ssl_vit.backbones.layers import (
    PatchEmbed,
    PreNormBlock,
    ReducedAttention,
    Size,
    init_linear,
    register_variants,
    rename_keys,
    resize_positions,
    to_map,
    to_tokens,
)
from ssl_vit.backbones.pyramid import Pyramid, TokenStage, drop_path_rates


class PVTStage(TokenStage):
    """A token stage with learned positions, and with a class token where it has one."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], dim: int, built: Size, cls: bool) -> None:
        super().__init__(downsample, blocks)
        self.built = built
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if cls else None
        self.pos_embed = nn.Parameter(torch.zeros(1, built[0] * built[1] + cls, dim))

    def tokens(self, x: Tensor) -> tuple[Tensor, Size]:
        """[B, C, H, W] -> ([B, 1 + H'*W' or H'*W', D], (H', W')), the class token first."""
        x = self.downsample(x)
        size = (x.shape[-2], x.shape[-1])
        if self.cls_token is None:
            return self.run(to_tokens(x) + resize_positions(self.pos_embed, self.built, size), size), size
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        x = to_tokens(x) + resize_positions(self.pos_embed[:, 1:], self.built, size)
        return self.run(torch.cat([cls, x], dim=1), size), size

    def patches(self, tokens: Tensor, size: Size) -> Tensor:
        """What `tokens` gave -> [B, D, H', W'], without the class token."""
        return to_map(tokens if self.cls_token is None else tokens[:, 1:], size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D, H', W']."""
        return self.patches(*self.tokens(x))


class PVT(Pyramid):
    """Pyramid Vision Transformer; features are the last stage's tokens [B, 1 + N, D], the class token first.

    `global_pool` is "token" (the class token, as published) or "avg" (the mean of the patches).
    """

    num_prefix_tokens = 1

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int] = (64, 128, 320, 512),
        heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[int] = (8, 8, 4, 4),
        reductions: Sequence[int] = (8, 4, 2, 1),
        img_size: int | Size = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        height, width = to_2tuple(img_size)
        stages = []
        for i, (dim, rates) in enumerate(zip(dims, drop_path_rates(drop_path_rate, depths), strict=True)):
            blocks = []
            for rate in rates:
                reduce = PatchEmbed(dim, dim, reductions[i]) if reductions[i] > 1 else None
                attn, mlp = ReducedAttention(dim, heads[i], reduce), Mlp(dim, mlp_ratios[i] * dim)
                blocks.append(PreNormBlock(dim, attn, mlp, rate, eps=1e-6))
            downsample = PatchEmbed(dims[i - 1], dim, 2) if i else nn.Identity()
            built = (-(-height // (4 << i)), -(-width // (4 << i)))
            stages.append(PVTStage(downsample, blocks, dim, built, cls=i == len(dims) - 1))
        stem = PatchEmbed(in_chans, dims[0], 4)
        norm = nn.LayerNorm(dims[-1], eps=1e-6)
        super().__init__(stem, stages, dims, norm=norm, num_classes=num_classes, in_chans=in_chans, drop_rate=drop_rate)
        self.global_pool = global_pool
        init_linear(self)
        for stage in stages:
            trunc_normal_(stage.pos_embed, std=0.02)
        trunc_normal_(stages[-1].cls_token, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """The class token; positions are decayed, as published."""
        return {"stages.3.cls_token"}

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for `num_classes`; 0 for none."""
        super().reset_classifier(num_classes)
        self.global_pool = self.global_pool if global_pool is None else global_pool

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """As :meth:`Pyramid.forward_intermediates`; the final features have the class token, the maps not."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}; this family gives 'NCHW' only")
        wanted, last = feature_take_indices(len(self.stages), indices)
        x = self.stem(x)
        maps = []
        stages: Any = self.stages[: last + 1] if stop_early else self.stages
        for i, stage in enumerate(stages):
            tokens, size = stage.tokens(x)
            final = self.norm(tokens) if i == len(self.stages) - 1 else tokens
            x = stage.patches(tokens, size)
            if i in wanted:
                maps.append(stage.patches(final, size) if norm else x)
        return maps if intermediates_only else (final, maps)

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] -> [B, 1 + N, D], normed, the class token first."""
        final, _ = self.forward_intermediates(x, indices=1)
        return final

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, 1 + N, D] -> [B, num_classes], or [B, D] with `pre_logits`."""
        x = self.head.drop(global_pool_nlc(x, self.global_pool))
        return x if pre_logits else self.head.fc(x)


def load_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint of the authors' code to our names."""
    return rename_keys(
        state_dict,
        (r"^patch_embed1\.", "stem."),
        (r"^patch_embed(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.downsample."),
        (r"^block(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
        (r"^pos_embed(\d)$", lambda m: f"stages.{int(m[1]) - 1}.pos_embed"),
        (r"^cls_token$", "stages.3.cls_token"),
        (r"\.attn\.sr\.", ".attn.reduce.proj."),
        (r"\.attn\.norm\.", ".attn.reduce.norm."),
        (r"^head\.", "head.fc."),
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "pvt_tiny": {"depths": (2, 2, 2, 2)},
    "pvt_small": {"depths": (3, 4, 6, 3)},
    "pvt_medium": {"depths": (3, 4, 18, 3)},
    "pvt_large": {"depths": (3, 8, 27, 3)},
}
register_variants(
    __name__,
    PVT,
    VARIANTS,
    kind="transformer",
    paper_ids="arXiv:2102.12122",
    first_conv="stem.proj",
    classifier="head.fc",
)
