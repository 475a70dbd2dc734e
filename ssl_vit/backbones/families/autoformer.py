"""AutoFormer (2107.00651): plain ViTs found by a search, each block with heads and an MLP of a width of its own.

The search trains one large network whose subnetworks share its weights; these are the three that were published. Heads
are 64 wide whatever the tokens are. Attention knows where tokens lie relative to one another, through vectors for rows
and for columns that are added to the keys and to the values: distances beyond 14 patches count as 14, and all pairs
with the class token have vectors of their own. The patches' mean is the image's vector.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from ssl_vit.backbones.layers import Size, merge_heads, register_variants, rename_keys, split_heads
from ssl_vit.backbones.plain import WiredViT

HEAD_DIM = 64
REACH = 14  # patches, the longest distance that has a vector of its own


class Distances(nn.Module):
    """A vector for each distance between rows and between columns, -14 to 14, and one for pairs with the class."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(trunc_normal_(torch.empty(2 * REACH + 2, HEAD_DIM), std=0.02))
        self.columns = nn.Parameter(trunc_normal_(torch.empty(2 * REACH + 2, HEAD_DIM), std=0.02))

    def forward(self, size: Size) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors from each row to each, [H, H, d], from each column to each, [W, W, d], and of the class token [d]."""
        rows, columns = (
            table[_offsets(side, table.device)] for table, side in zip((self.rows, self.columns), size, strict=True)
        )
        return rows, columns, self.rows[0] + self.columns[0]


def _offsets(side: int, device: torch.device) -> Tensor:
    """Where the distance from one of `side` places to another lies in a table, [side, side]; 0 is the class token's."""
    places = torch.arange(side, device=device)
    return (places - places[:, None]).clamp(-REACH, REACH) + REACH + 1


class Attention(nn.Module):
    """Multi-head attention among a class token and a map of patches, with relative positions in keys and values."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool, attn_drop: float, proj_drop: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, HEAD_DIM**-0.5
        self.qkv = nn.Linear(dim, 3 * heads * HEAD_DIM, bias=qkv_bias)
        self.key_distances = Distances()
        self.value_distances = Distances()
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(heads * HEAD_DIM, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def bias(self, query: Tensor, size: Size) -> Tensor:
        """What queries [B, heads, 1 + H*W, d] see of the keys' positions, [B, heads, 1 + H*W, 1 + H*W]."""
        rows, columns, own = self.key_distances(size)
        patches = query[:, :, 1:].reshape(*query.shape[:2], *size, HEAD_DIM)
        by_row = torch.einsum("bnhwd,hkd->bnhwk", patches, rows)
        by_column = torch.einsum("bnhwd,wkd->bnhwk", patches, columns)
        inner = (by_row[..., None] + by_column[..., None, :]).flatten(4).flatten(2, 3)
        with_class = (query @ own)[..., None]
        first = with_class[:, :, :1].expand(-1, -1, -1, query.shape[2])
        return torch.cat([first, torch.cat([with_class[:, :, 1:], inner], dim=3)], dim=2)

    def positions(self, maps: Tensor, size: Size) -> Tensor:
        """The values' positions under attention maps [B, heads, 1 + H*W, 1 + H*W]: [B, heads, 1 + H*W, d]."""
        rows, columns, own = self.value_distances(size)
        inner = maps[:, :, 1:, 1:].reshape(*maps.shape[:2], *size, *size)
        seen = torch.einsum("bnhwk,hkd->bnhwd", inner.sum(-1), rows)
        seen = seen + torch.einsum("bnhwk,wkd->bnhwd", inner.sum(-2), columns)
        patches = seen.flatten(2, 3) + maps[:, :, 1:, :1] * own
        return torch.cat([maps[:, :, :1].sum(-1, keepdim=True) * own, patches], dim=2)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """[B, 1 + H*W, D] and (H, W) -> [B, 1 + H*W, D]."""
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        query = query * self.scale
        maps = self.attn_drop((query @ key.transpose(-2, -1) + self.bias(query, size)).softmax(-1))
        x = merge_heads(maps @ value + self.positions(maps, size))
        x = self.proj_drop(self.proj(x))
        return x


class Block(nn.Module):
    """A pre-norm block whose heads and MLP are those found for its depth."""

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: Sequence[int],
        ratios: Sequence[float],
        qkv_bias: bool,
        attn_drop: float,
        proj_drop: float,
        drop_path: float,
        norm_layer: type[nn.Module],
        **_: Any,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = Attention(dim, heads[depth], qkv_bias, attn_drop, proj_drop)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * ratios[depth]), drop=proj_drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """[B, 1 + H*W, D] and (H, W) -> [B, 1 + H*W, D]."""
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class AutoFormer(WiredViT):
    """A plain ViT of the first `depth` blocks that a search has found: `heads` and `ratios`, one of each a block."""

    def __init__(self, heads: Sequence[int], ratios: Sequence[float], depth: int | None = None, **kwargs: Any) -> None:
        depth = len(heads) if depth is None else depth
        if depth > len(heads):
            raise ValueError(f"depth is {depth}, but {len(heads)} blocks were found; it may be 1 to {len(heads)}")
        block = partial(Block, heads=heads, ratios=ratios)
        fixed: dict[str, Any] = {"global_pool": "avg", "fc_norm": False, "norm_layer": nn.LayerNorm}
        super().__init__(block_fn=block, depth=depth, **{**fixed, **kwargs})
        if self.num_prefix_tokens != 1 or not self.has_class_token:
            raise ValueError("AutoFormer's positions are those of one class token and a map of patches; leave both so")

    def levels(self, images: Tensor) -> Iterator[Tensor]:
        """The tokens [B, N, D] after each block; images: [B, C, H, W]."""
        x, size = self.embed(images), self.patch_embed.dynamic_feat_size((images.shape[-2], images.shape[-1]))
        for block in self.blocks:
            x = self.run(block, x, size)
            yield x

    def no_weight_decay(self) -> set[str]:
        """Positions and the class token, the vectors of distances too, as the authors mean it."""
        return {*super().no_weight_decay(), *(name for name, _ in self.named_parameters() if "_distances." in name)}


OFFICIAL = (
    (r"^patch_embed_super\.", "patch_embed."),
    (r"\.attn_layer_norm\.", ".norm1."),
    (r"\.ffn_layer_norm\.", ".norm2."),
    (r"^(blocks\.\d+)\.fc", r"\1.mlp.fc"),
    (r"\.rel_pos_embed_k\.embeddings_table_v$", ".key_distances.rows"),
    (r"\.rel_pos_embed_k\.embeddings_table_h$", ".key_distances.columns"),
    (r"\.rel_pos_embed_v\.embeddings_table_v$", ".value_distances.rows"),
    (r"\.rel_pos_embed_v\.embeddings_table_h$", ".value_distances.columns"),
)


def load_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut the published subnet out of an official checkpoint, which is the large network's.

    ValueError where its width is none of the three that were published.
    """
    if "patch_embed_super.proj.weight" not in state_dict:
        return dict(state_dict)
    width = len(state_dict["patch_embed_super.proj.weight"])
    if width not in SUPERNETS:
        raise ValueError(f"a supernet {width} wide; the published ones are {', '.join(map(str, SUPERNETS))} wide")
    found = VARIANTS[SUPERNETS[width]]
    dim, heads, ratios = found["embed_dim"], found["heads"], found["ratios"]
    ours = {}
    for name, weight in rename_keys(state_dict, *OFFICIAL).items():
        block = re.match(r"blocks\.(\d+)\.", name)
        if block is None:
            ours[name] = weight[..., :dim] if name in ("cls_token", "pos_embed", "head.weight") else weight
            if name.startswith(("patch_embed.", "norm.")):
                ours[name] = weight[:dim]
        elif (depth := int(block[1])) < len(heads):
            inner, hidden = heads[depth] * HEAD_DIM, int(dim * ratios[depth])
            ours[name] = _cut(name[block.end() :], weight, dim, inner, hidden)
    return ours


def _cut(layer: str, weight: Tensor, dim: int, inner: int, hidden: int) -> Tensor:
    """A block's part of a shared weight: the first rows and columns; those of queries, keys and values alternate."""
    if layer == "attn.qkv.weight":
        return torch.cat([weight[part : 3 * inner : 3, :dim] for part in range(3)])
    sizes = {
        "attn.qkv.bias": (3 * inner,),  # does not alternate
        "attn.proj.weight": (dim, inner),
        "mlp.fc1.weight": (hidden, dim),
        "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (dim, hidden),
    }
    if "_distances." in layer:
        return weight
    return weight[tuple(slice(size) for size in sizes.get(layer, (dim,)))]


VARIANTS: dict[str, dict[str, Any]] = {
    "autoformer_tiny": {
        "embed_dim": 192,
        "heads": (3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 3, 3),
        "ratios": (3.5, 3.5, 3.0, 3.5, 3.0, 3.0, 4.0, 4.0, 3.5, 4.0, 3.5, 4.0, 3.5),
    },
    "autoformer_small": {
        "embed_dim": 384,
        "heads": (6, 6, 5, 7, 5, 5, 5, 6, 6, 7, 7, 6, 7),
        "ratios": (3.0, 3.5, 3.0, 3.5, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 3.5, 4.0),
    },
    "autoformer_base": {
        "embed_dim": 576,
        "heads": (9, 9, 9, 9, 9, 10, 9, 9, 10, 9, 10, 9, 9, 10),
        "ratios": (3.5, 3.5, 4.0, 3.5, 4.0, 3.5, 3.5, 3.0, 4.0, 4.0, 3.0, 4.0, 3.0, 3.5),
    },
}
SUPERNETS = {256: "autoformer_tiny", 448: "autoformer_small", 640: "autoformer_base"}  # by the large network's width

register_variants(
    __name__,
    AutoFormer,
    VARIANTS,
    kind="transformer",
    out_indices=3,
    paper_ids="arXiv:2107.00651",
    first_conv="patch_embed.proj",
    classifier="head",
)
