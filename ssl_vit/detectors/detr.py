"""DETR puts an encoder and a decoder on the last map of any backbone (arXiv 2005.12872)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.detectors.detector import Detector, FrozenNorms, Mlp, Predictions, shrink, sigmoid_shares
from ssl_vit.detectors.positions import sine_position_map

HEADS, DROPOUT = 8, 0.1  # of the official models


class EncoderLayer(nn.Module):
    """The cells of the map attend to one another; a norm follows each branch."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, heads, DROPOUT, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, positions: Tensor, padding: Tensor) -> Tensor:
        """Update the cells x [B, N, D]; positions: [B, N, D]; padding: bool [B, N]."""
        q = x + positions
        attended, _ = self.self_attn(q, q, x, key_padding_mask=padding, need_weights=False)
        x = self.norm1(x + self.dropout(attended))
        hidden = self.linear2(self.dropout(F.relu(self.linear1(x))))
        return self.norm2(x + self.dropout(hidden))  # type: ignore[no-any-return]  # nn.Module's call has no type


class DecoderLayer(nn.Module):
    """The queries attend to one another, then to the map."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, heads, DROPOUT, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(dim, heads, DROPOUT, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, queries: Tensor, memory: Tensor, positions: Tensor, padding: Tensor) -> Tensor:
        """Update the states x [B, Q, D]; queries: [B, Q, D]; memory, positions: [B, N, D]; padding: bool [B, N]."""
        q = x + queries
        attended, _ = self.self_attn(q, q, x, need_weights=False)
        x = self.norm1(x + self.dropout(attended))
        seen, _ = self.multihead_attn(
            x + queries, memory + positions, memory, key_padding_mask=padding, need_weights=False
        )
        x = self.norm2(x + self.dropout(seen))
        hidden = self.linear2(self.dropout(F.relu(self.linear1(x))))
        return self.norm3(x + self.dropout(hidden))  # type: ignore[no-any-return]  # nn.Module's call has no type


class TransformerEncoder(nn.Module):
    """The layers of the encoder follow one another."""

    def __init__(self, depth: int, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(dim, heads, hidden) for _ in range(depth))

    def forward(self, x: Tensor, positions: Tensor, padding: Tensor) -> Tensor:
        """Encode the cells x [B, N, D]; positions: [B, N, D]; padding: bool [B, N]."""
        for layer in self.layers:
            x = layer(x, positions, padding)
        return x


class TransformerDecoder(nn.Module):
    """The layers of the decoder follow one another; each is looked at through the same last norm."""

    def __init__(self, depth: int, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, memory: Tensor, positions: Tensor, padding: Tensor) -> list[Tensor]:
        """Return what each layer gives, [B, Q, D], the last at the end."""
        x, seen = torch.zeros_like(queries), []
        for layer in self.layers:
            x = layer(x, queries, memory, positions, padding)
            seen.append(self.norm(x))
        return seen


class Transformer(nn.Module):
    """Encoder and decoder stand under the official names."""

    def __init__(self, dim: int, heads: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.encoder = TransformerEncoder(depth, dim, heads, hidden)
        self.decoder = TransformerDecoder(depth, dim, heads, hidden)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, map_: Tensor, padding: Tensor, queries: Tensor) -> list[Tensor]:
        """Return the queries [B, Q, D] after each layer.

        map_: [B, D, H, W]; padding: bool [B, H, W]; queries: [Q, D].
        """
        positions = sine_position_map(padding, map_.shape[1]).to(map_.dtype).flatten(2).mT
        cells, hidden = map_.flatten(2).mT, padding.flatten(1)
        memory = self.encoder(cells, positions, hidden)
        seen: list[Tensor] = self.decoder(queries.expand(map_.shape[0], -1, -1), memory, positions, hidden)
        return seen


class DETR(FrozenNorms, Detector):
    """DETR finds `queries` objects at most; the official sizes are the defaults.

    dim: of the queries and the map, a multiple of 8. embedding: the length of a vector that each query gives of its
    object (DETReg, arXiv 2106.04550).
    """

    name = "detr"
    focal = False

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        queries: int = 100,
        depth: int = 6,
        dim: int = 256,
        hidden: int = 2048,
        embedding: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.dim = backbone, dim
        self.settings = {"queries": queries, "depth": depth, "dim": dim, "hidden": hidden, "embedding": embedding}
        self.transformer = Transformer(dim, HEADS, hidden, depth)
        self.forget_classes(num_classes)
        self.bbox_embed = Mlp([dim, dim, dim, 4])
        self.query_embed = nn.Embedding(queries, dim)
        self.input_proj = nn.Conv2d(backbone.info.stages[-1].channels, dim, 1)
        self.feature_embed = None if embedding is None else Mlp([dim, dim, embedding])
        self.freeze_norms()

    def forward(self, images: Tensor, padding: Tensor | None = None) -> Predictions:
        """Predict classes and boxes, for each query and after each layer.

        images: [B, 3, H, W] normalised; padding: bool [B, H, W], True beside the image.
        """
        map_ = self.backbone.pyramid(images)[-1]
        seen = self.transformer(self.input_proj(map_), shrink(padding, map_), self.query_embed.weight)
        said = [(self.class_embed(x), sigmoid_shares(self.bbox_embed(x))) for x in seen]
        embeddings = None if self.feature_embed is None else self.feature_embed(seen[-1])
        return Predictions(*said[-1], tuple(said[:-1]), embeddings)

    def forget_classes(self, num_classes: int) -> None:
        """Make a new class head, with random weights."""
        self.num_classes = num_classes
        self.class_embed = nn.Linear(self.dim, num_classes + 1)


def load_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename facebookresearch/detr's weights to ours: only the backbone's names differ."""
    return {name.replace("backbone.0.body.", "backbone.model."): weight for name, weight in weights.items()}
