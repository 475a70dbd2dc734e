"""Multi-stream ViT (2107.10342): between the first and the last block, stacks of blocks run side by side.

The first block's output enters every stream; the last block takes their sum, and the first block's output over a skip
connection. The paper does this to the encoder of a translator and leaves open how to split a ViT; chosen here: two
streams, the depth counts the blocks of all streams (so that parameters and cost are the plain ViT's: 1 + 2 x 5 + 1),
and the tokens of a level are the sum of the streams.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ssl_vit.backbones.layers import register_variants
from ssl_vit.backbones.plain import WiredViT


class MultiStreamViT(WiredViT):
    """A plain ViT whose blocks, but the first and the last, form `streams` parallel stacks.

    ``blocks`` holds them level by level: the first block, then the first block of each stream, and so on.
    """

    def __init__(self, streams: int = 2, skip: bool = True, depth: int = 12, **kwargs: Any) -> None:
        if depth < 2 + streams or (depth - 2) % streams:
            raise ValueError(f"depth {depth} can't be split into 1 + {streams} equal streams + 1 blocks")
        super().__init__(depth=depth, **kwargs)
        self.streams, self.skip = streams, skip
        last_of_level = [0, *range(streams, depth - 1, streams), depth - 1]
        self.feature_info = [self.feature_info[i] for i in last_of_level]

    def walk(self, x: Tensor) -> Iterator[Tensor]:
        """The tokens [B, N, D] after the first block, after each level of the streams, and after the last block."""
        first = self.run(self.blocks[0], x)
        yield first
        tokens = [first] * self.streams
        inner = list(self.blocks[1:-1])
        for start in range(0, len(inner), self.streams):
            level = inner[start : start + self.streams]
            tokens = [self.run(block, stream) for block, stream in zip(level, tokens, strict=True)]
            yield sum(tokens[1:], tokens[0])
        merged = sum(tokens[1:], tokens[0])
        yield self.run(self.blocks[-1], merged + first if self.skip else merged)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop norm and head; the blocks stay, for the last one needs all. The indices that are left."""
        wanted, _ = feature_take_indices(len(self.feature_info), indices)
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.fc_norm = nn.Identity()
            self.reset_classifier(0, "")
        return list(wanted)


SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
VARIANTS: dict[str, dict[str, Any]] = {
    f"multi_stream_vit_{size}_patch16_224": {"embed_dim": dim, "num_heads": heads}
    for size, (dim, heads) in SIZES.items()
}

register_variants(
    __name__,
    MultiStreamViT,
    VARIANTS,
    kind="transformer",
    out_indices=3,
    paper_ids="arXiv:2107.10342",
    first_conv="patch_embed.proj",
    classifier="head",
)
