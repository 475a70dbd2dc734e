"""YOLOS adds detection tokens to a plain ViT, and nothing else (arXiv 2106.00666)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from timm.layers.weight_init import trunc_normal_
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.detectors.detector import Detector, Mlp, Predictions, sigmoid_shares
from ssl_vit.errors import UserError


class DetectionViT(nn.Module):
    """A ViT has detection tokens behind its patches here, under the official names.

    Positions are learnt on the grid of `image_size` (height, width) in pixels, and resized to that of the images.
    middle: positions are added again after every block but the last, as in the official small and base models.
    """

    def __init__(
        self, vit: VisionTransformer, image_size: tuple[int, int], *, queries: int = 100, middle: bool = False
    ) -> None:
        super().__init__()
        dim, patch = vit.embed_dim, vit.patch_embed.patch_size
        assert vit.cls_token is not None
        assert vit.pos_embed is not None
        self.patch_embed, self.blocks, self.norm = vit.patch_embed, vit.blocks, vit.norm
        self.patch_embed.strict_img_size = False
        self.cls_token: nn.Parameter = vit.cls_token
        self.det_token = nn.Parameter(torch.empty(1, queries, dim))
        self.grid = (image_size[0] // patch[0], image_size[1] // patch[1])
        places = torch.empty(1, 1 + self.grid[0] * self.grid[1] + queries, dim)
        trunc_normal_(self.det_token, std=0.02)
        trunc_normal_(places, std=0.02)
        _, before = self._split(vit.pos_embed.detach(), 0, vit.patch_embed.grid_size)
        resized = F.interpolate(before, self.grid, mode="bicubic", align_corners=False)
        places[:, 1 : 1 + resized[0, 0].numel()] = resized.flatten(2).mT
        self.pos_embed = nn.Parameter(places)
        self.mid_pos_embed: nn.Parameter | None = None
        if middle:
            self.mid_pos_embed = nn.Parameter(torch.empty(len(vit.blocks) - 1, *places.shape))
            trunc_normal_(self.mid_pos_embed, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to the detection tokens [B, Q, D]."""
        size = images.shape[-2] // self.patch_embed.patch_size[0], images.shape[-1] // self.patch_embed.patch_size[1]
        patches: Tensor = self.patch_embed(images).flatten(1, -2)
        b = patches.shape[0]
        x = torch.cat([self.cls_token.expand(b, -1, -1), patches, self.det_token.expand(b, -1, -1)], 1)
        x = x + self._positions(self.pos_embed, size)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if self.mid_pos_embed is not None and index < len(self.mid_pos_embed):
                x = x + self._positions(self.mid_pos_embed[index], size)
        found: Tensor = self.norm(x)[:, -self.det_token.shape[1] :]
        return found

    def _positions(self, positions: Tensor, size: tuple[int, int]) -> Tensor:
        """[1, 1 + N + Q, D] on the grid of the images."""
        queries = self.det_token.shape[1]
        if size == self.grid:
            return positions
        first, patches = self._split(positions, queries, self.grid)
        resized = F.interpolate(patches, size, mode="bicubic", align_corners=False).flatten(2).mT
        return torch.cat([first, resized, positions[:, -queries:]], 1)

    @staticmethod
    def _split(positions: Tensor, queries: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The positions before the patches [1, n, D], and the patches' as a map [1, D, H, W]."""
        end = positions.shape[1] - queries
        start = end - grid[0] * grid[1]
        return positions[:, :start], positions[:, start:end].mT.reshape(1, -1, *grid)


class YOLOS(Detector):
    """YOLOS detects on a plain ViT with a class token."""

    focal = False

    def __init__(
        self,
        backbone: AdaptedBackbone,
        num_classes: int,
        *,
        image_size: tuple[int, int] | None = None,
        queries: int = 100,
        middle: bool = False,
    ) -> None:
        super().__init__()
        vit = backbone.model
        if not isinstance(vit, VisionTransformer) or vit.cls_token is None or vit.pos_embed is None:
            raise UserError(
                f"{backbone.info.name}: YOLOS is made of a plain ViT with a class token; choose a vit_ or deit_"
            )
        self.num_classes = num_classes
        self.backbone = DetectionViT(vit, image_size or backbone.info.size, queries=queries, middle=middle)
        self.dim = dim = vit.embed_dim
        self.class_embed, self.bbox_embed = Mlp([dim, dim, dim, num_classes + 1]), Mlp([dim, dim, dim, 4])

    def forward(self, images: Tensor, padding: Tensor | None = None) -> Predictions:
        """Predict classes and boxes.

        images: [B, 3, H, W] normalised; padding is black to it, as to the official one.
        """
        x = self.backbone(images)
        return Predictions(self.class_embed(x), sigmoid_shares(self.bbox_embed(x)))

    def forget_classes(self, num_classes: int) -> None:
        """Make a new class head, with random weights."""
        self.num_classes = num_classes
        self.class_embed = Mlp([self.dim, self.dim, self.dim, num_classes + 1])


def load_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return hustvl/YOLOS's weights as they are: their names are ours."""
    return dict(weights)
