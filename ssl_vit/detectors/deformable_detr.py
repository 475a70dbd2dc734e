"""Deformable DETR looks at several maps of any backbone, each where it matters (arXiv 2010.04159)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.detectors.deformable_attention import DeformableAttention, Sizes
from ssl_vit.detectors.detector import Detector, FrozenNorms, Mlp, Predictions, shrink, sigmoid_shares
from ssl_vit.detectors.positions import sine_position_map
from ssl_vit.errors import UserError

HEADS, POINTS, DROPOUT = 8, 4, 0.1  # of the official models
FINEST = 8  # stride of the finest map that is looked at, pixels


_OTHERS = {  # the first names that only these models have, of official weights
    "transformer.enc_output": "with two stages (--two_stage)",
    "transformer.pos_trans": "with two stages (--two_stage)",
    "transformer.decoder.bbox_embed": "that refines boxes from layer to layer (--with_box_refine)",
}


class Memory(NamedTuple):
    """The memory holds the cells of L maps, one after the other: N of each image."""

    cells: Tensor  # [B, N, D]
    positions: Tensor  # [B, N, D]
    padding: Tensor  # bool [B, N]
    sizes: Sizes  # of the maps
    valid: Tensor  # [B, L, 2] share of the maps' (width, height) that the image fills

    def references(self) -> Tensor:
        """Return the centre of every cell on every map, [B, N, L, 2], as a share of the map."""
        centres = []
        for level, (height, width) in enumerate(self.sizes):
            rows = (torch.arange(height, device=self.cells.device) + 0.5) / height
            columns = (torch.arange(width, device=self.cells.device) + 0.5) / width
            grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1)
            centres.append(grid / self.valid[:, None, level])  # as a share of the image
        return torch.cat(centres, 1)[:, :, None] * self.valid[:, None]


class DeformableEncoderLayer(nn.Module):
    """Every cell looks around itself on all maps."""

    def __init__(self, dim: int, levels: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(dim, levels, HEADS, POINTS)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, references: Tensor, memory: Memory) -> Tensor:
        """Update the cells x [B, N, D]; references: [B, N, L, 2]."""
        seen = self.self_attn(x + memory.positions, references, x, memory.sizes, memory.padding)
        x = self.norm1(x + self.dropout(seen))
        hidden = self.linear2(self.dropout(F.relu(self.linear1(x))))
        return self.norm2(x + self.dropout(hidden))  # type: ignore[no-any-return]  # nn.Module's call has no type


class DeformableDecoderLayer(nn.Module):
    """Queries attend to one another, then to the maps around each query's reference point."""

    def __init__(self, dim: int, levels: int, hidden: int) -> None:
        super().__init__()
        self.cross_attn = DeformableAttention(dim, levels, HEADS, POINTS)
        self.self_attn = nn.MultiheadAttention(dim, HEADS, DROPOUT, batch_first=True)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, queries: Tensor, references: Tensor, memory: Memory) -> Tensor:
        """Update the states x [B, Q, D]; queries: [B, Q, D]; references: [B, Q, L, 2]."""
        q = x + queries
        attended, _ = self.self_attn(q, q, x, need_weights=False)
        x = self.norm2(x + self.dropout(attended))
        seen = self.cross_attn(x + queries, references, memory.cells, memory.sizes, memory.padding)
        x = self.norm1(x + self.dropout(seen))
        hidden = self.linear2(self.dropout(F.relu(self.linear1(x))))
        return self.norm3(x + self.dropout(hidden))  # type: ignore[no-any-return]  # nn.Module's call has no type


class Layers(nn.Module):
    """A stack holds layers under its official name."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class DeformableTransformer(nn.Module):
    """Encoder and decoder stand under the official names."""

    def __init__(self, dim: int, levels: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.randn(levels, dim))
        self.encoder = Layers([DeformableEncoderLayer(dim, levels, hidden) for _ in range(depth)])
        self.decoder = Layers([DeformableDecoderLayer(dim, levels, hidden) for _ in range(depth)])
        self.reference_points = nn.Linear(dim, 2)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and name != "level_embed":
                nn.init.xavier_uniform_(parameter)
        nn.init.zeros_(self.reference_points.bias)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.reset()

    def forward(self, maps: list[Tensor], paddings: list[Tensor], queries: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the queries [B, Q, D] after each layer, and their reference points [B, Q, 2] as shares of the image.

        maps: [B, D, H_l, W_l]; paddings: bool [B, H_l, W_l]; queries: [Q, 2 D].

        The queries [B, Q, D] after each layer, and their reference points [B, Q, 2] as a share of the image.
        """
        memory = self.remember(maps, paddings)
        places, start = queries.expand(maps[0].shape[0], -1, -1).chunk(2, dim=-1)
        reference = sigmoid_shares(self.reference_points(places))
        on_maps = reference[:, :, None] * memory.valid[:, None]
        x, seen = start, []
        for layer in self.decoder.layers:
            x = layer(x, places, on_maps, memory)
            seen.append(x)
        return seen, reference

    def remember(self, maps: list[Tensor], paddings: list[Tensor]) -> Memory:
        """Encode the maps: what the decoder looks at."""
        dim = maps[0].shape[1]
        positions = [
            sine_position_map(padding, dim, centred=True).to(maps[0].dtype) + level[:, None, None]
            for padding, level in zip(paddings, self.level_embed, strict=True)
        ]
        memory = Memory(
            cells=torch.cat([map_.flatten(2).mT for map_ in maps], 1),
            positions=torch.cat([position.flatten(2).mT for position in positions], 1),
            padding=torch.cat([padding.flatten(1) for padding in paddings], 1),
            sizes=[(map_.shape[-2], map_.shape[-1]) for map_ in maps],
            valid=torch.stack([_filled(padding) for padding in paddings], 1),
        )
        references, x = memory.references(), memory.cells
        for layer in self.encoder.layers:
            x = layer(x, references, memory)
        return memory._replace(cells=x)


def _filled(padding: Tensor) -> Tensor:
    """[B, H, W] -> [B, 2], the share of the first row and of the first column (width, height) that is no padding."""
    return torch.stack([(~padding[:, 0]).float().mean(1), (~padding[:, :, 0]).float().mean(1)], -1)


class DeformableDETR(FrozenNorms, Detector):
    """Deformable DETR finds `queries` objects at most, on `levels` maps; the official sizes are the defaults.

    The maps are the backbone's of stride 8 and more; what is missing is made of the coarsest by convolutions of
    stride 2. dim: of the queries and maps, a multiple of 32. embedding: the length of a vector that each query gives of
    its object (DETReg, arXiv 2106.04550).
    """

    name = "deformable_detr"
    focal = True

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        queries: int = 300,
        levels: int = 4,
        depth: int = 6,
        dim: int = 256,
        hidden: int = 1024,
        embedding: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.dim = backbone, dim
        self.settings = {"queries": queries, "levels": levels, "depth": depth, "dim": dim, "hidden": hidden}
        self.settings["embedding"] = embedding
        stages = list(enumerate(backbone.info.stages))
        self.kept = [i for i, stage in stages if stage.stride >= FINEST][-levels:] or [stages[-1][0]]
        channels = [backbone.info.stages[i].channels for i in self.kept]
        projections = [_projection(c, dim, 1) for c in channels]
        for level in range(levels - len(channels)):
            projections.append(_projection(dim if level else channels[-1], dim, 2))
        self.input_proj = nn.ModuleList(projections)
        self.transformer = DeformableTransformer(dim, levels, hidden, depth)
        self.query_embed = nn.Embedding(queries, 2 * dim)
        self.bbox_embed = Mlp([dim, dim, dim, 4])
        self.bbox_embed.layers[-1] = _small_boxes(dim)
        self.feature_embed = None if embedding is None else Mlp([dim, dim, embedding])
        self.forget_classes(num_classes)
        self.freeze_norms()

    def forward(self, images: Tensor, padding: Tensor | None = None) -> Predictions:
        """Predict classes and boxes, for each query and after each layer.

        images: [B, 3, H, W] normalised; padding: bool [B, H, W], True beside the image.
        """
        maps = self.maps(images)
        seen, reference = self.transformer(maps, [shrink(padding, map_) for map_ in maps], self.query_embed.weight)
        said = [(self.class_embed(x), self._boxes(x, reference)) for x in seen]
        embeddings = None if self.feature_embed is None else self.feature_embed(seen[-1])
        return Predictions(*said[-1], tuple(said[:-1]), embeddings)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Project the backbone's maps: [B, 3, H, W] -> L maps [B, D, H_l, W_l], finest first."""
        pyramid = self.backbone.pyramid(images)
        taken = [pyramid[i] for i in self.kept]
        maps = [project(map_) for project, map_ in zip(self.input_proj, taken, strict=False)]
        for level, project in enumerate(self.input_proj[len(taken) :]):
            maps.append(project(maps[-1] if level else taken[-1]))
        return maps

    def _boxes(self, x: Tensor, reference: Tensor) -> Tensor:
        """A box is told relative to the reference point."""
        raw: Tensor = self.bbox_embed(x)
        return sigmoid_shares(torch.cat([raw[..., :2] + reference.logit(eps=1e-5), raw[..., 2:]], -1))

    def forget_classes(self, num_classes: int) -> None:
        """Make a new class head, at random, under which everything is unlikely at first (arXiv 1708.02002)."""
        self.num_classes = num_classes
        self.class_embed = nn.Linear(self.dim, num_classes)
        nn.init.constant_(self.class_embed.bias, -math.log(99))


def _small_boxes(dim: int) -> nn.Linear:
    """The last layer of the box head, which at first says small boxes at the reference points."""
    layer = nn.Linear(dim, 4)
    nn.init.zeros_(layer.weight)
    layer.bias = nn.Parameter(torch.tensor([0.0, 0.0, -2.0, -2.0]))
    return layer


def _projection(channels: int, dim: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, dim, 1) if stride == 1 else nn.Conv2d(channels, dim, 3, stride, padding=1)
    nn.init.xavier_uniform_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.GroupNorm(32, dim))


def load_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of fundamentalvision/Deformable-DETR and of amirbar/DETReg to ours.

    There all layers share one class head and one box head, which the file holds once a layer. UserError for a model of
    two stages or one that refines boxes from layer to layer, where the heads differ: ours is neither.
    """
    for start, kind in _OTHERS.items():
        if found := next((name for name in weights if name.startswith(start)), None):
            raise UserError(f"{found}: the weights are of a Deformable DETR {kind}; expected the plain one, without it")
    ours = {}
    for name, weight in weights.items():
        name = re.sub(r"^(class_embed|bbox_embed)\.\d+\.", r"\1.", name)
        ours[name.replace("backbone.0.body.", "backbone.model.")] = weight
    return ours
