"""RAMS-Trans (2107.08192): a plain ViT looks twice, the second time at the region that its own attention points to.

The first class token classifies the whole image. Attention maps, rolled out over the blocks, score the patches; the box
of the largest connected group of patches above the mean is cut out, zoomed to the full size and seen by the same
network again, where the second class token (timm's register token) classifies it. As a backbone it is the first look;
:meth:`RAMSTrans.forward_scales` gives both.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.backbones.layers import register_variants, rename_keys, split_heads
from ssl_vit.backbones.plain import PlainViT

THRESHOLD = 1.2  # times the mean score; the official code's


def attention_map(block: nn.Module, x: Tensor) -> Tensor:
    """Compute how much each token of timm's block looks at each other one, mean over heads: [B, N, D] -> [B, N, N]."""
    attn = block.get_submodule("attn")
    query, key, _ = attn.get_submodule("qkv")(block.get_submodule("norm1")(x)).chunk(3, dim=-1)
    query, key = (split_heads(part, attn.num_heads) for part in (query, key))  # type: ignore[arg-type]  # an int
    maps: Tensor = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)
    return maps.mean(1)


def components(mask: Tensor) -> Tensor:
    """Number the 8-connected components of masks [B, H, W]: each cell gets the first raster index of its own + 1.

    Cells outside the mask get 0.

    >>> components(torch.tensor([[[1, 0, 0, 1], [0, 1, 0, 1]]]).bool())
    tensor([[[1, 0, 0, 4],
             [0, 1, 0, 4]]])
    """
    height, width = mask.shape[-2:]
    beyond = float(height * width + 1)
    labels = torch.arange(1, height * width + 1, device=mask.device, dtype=torch.float32).reshape(1, height, width)
    labels = labels.expand(mask.shape).masked_fill(~mask, beyond)
    while True:  # each round hands the smallest index one cell on
        spread = -F.max_pool2d(-labels, 3, stride=1, padding=1)
        spread = spread.masked_fill(~mask, beyond)
        if torch.equal(spread, labels):
            return labels.masked_fill(~mask, 0).long()
        labels = spread


def largest_box(mask: Tensor) -> Tensor:
    """Box the largest 8-connected component of each mask [B, H, W]: [B, 4] as top, left, bottom, right.

    Bottom and right are the first row and column after it. Of equals the first in raster order; of an empty mask, all.

    >>> largest_box(torch.tensor([[[1, 0, 0, 1], [0, 0, 0, 1]]]).bool())
    tensor([[0, 3, 2, 4]])
    """
    mask = mask | ~mask.any(dim=(1, 2), keepdim=True)
    labels = components(mask).flatten(1)
    sizes = torch.zeros(len(labels), labels.shape[1] + 1, device=labels.device)
    sizes.scatter_add_(1, labels, torch.ones_like(labels, dtype=sizes.dtype))
    largest = sizes[:, 1:].argmax(1) + 1
    chosen = (labels == largest[:, None]).reshape(mask.shape)
    rows, columns = chosen.any(2).long(), chosen.any(1).long()
    sides = [rows.argmax(1), columns.argmax(1)]  # argmax gives the first of equals
    sides += [side.shape[1] - side.flip(1).argmax(1) for side in (rows, columns)]
    return torch.stack(sides, dim=1)


def zoom(images: Tensor, boxes: Tensor) -> Tensor:
    """Cut boxes [B, 4] (top, left, bottom, right; pixels, inclusive) out of images [B, C, H, W]; stretch to full size.

    Bilinear, the corners of the box on the corners of the image.
    """
    height, width = images.shape[-2:]
    grid = F.affine_grid(
        torch.eye(2, 3).expand(images.shape[0], 2, 3), [images.shape[0], 1, height, width], align_corners=True
    )
    grid = grid.to(images)
    top, left, bottom, right = boxes.to(images.dtype).T[..., None, None]
    x = left + (grid[..., 0] + 1) / 2 * (right - left)
    y = top + (grid[..., 1] + 1) / 2 * (bottom - top)
    where = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
    return F.grid_sample(images, where, mode="bilinear", align_corners=True)


class RAMSTrans(PlainViT):
    """A plain ViT with a class token for each of two looks."""

    def scores(self, images: Tensor) -> Tensor:
        """Attention rolled out over all blocks (2005.00928), for each patch: [B, C, H, W] -> [B, H/s, W/s]."""
        height, width = self.patch_embed.dynamic_feat_size((images.shape[-2], images.shape[-1]))
        x = self.norm_pre(self._pos_embed(self.patch_embed(images)))
        identity = torch.eye(x.shape[1], device=x.device)
        rollout = identity
        for block in self.blocks:
            step = attention_map(block, x) + identity
            rollout = step / step.sum(-1, keepdim=True) @ rollout
            x = block(x)
        return rollout.mean(1)[:, self.num_prefix_tokens :].reshape(-1, height, width)

    @torch.no_grad()
    def regions(self, images: Tensor) -> Tensor:
        """The region to look at again: [B, C, H, W] -> [B, 4] as top, left, bottom, right; pixels, inclusive."""
        scores = self.scores(images)
        boxes = largest_box(scores > THRESHOLD * scores.mean(dim=(1, 2), keepdim=True))
        boxes = boxes * self.patch_embed.feat_ratio() - 1  # the official code starts a pixel before the patch
        height, width = images.shape[-2:]
        return torch.minimum(boxes.clamp_min(0), boxes.new_tensor([height, width, height, width]) - 1)

    def forward_scales(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] of the whole image and of the region that the network chose; train on the loss of both."""
        whole = self.forward_features(images)
        region = self.forward_features(zoom(images, self.regions(images)))
        return self.head(self.head_drop(whole[:, 0])), self.head(self.head_drop(region[:, 1]))


OFFICIAL = (  # pattern of official names -> ours
    (r"^transformer\.embeddings\.position_embeddings$", "pos_embed"),
    (r"^transformer\.embeddings\.cls_token1$", "cls_token"),
    (r"^transformer\.embeddings\.cls_token2$", "reg_token"),
    (r"^transformer\.embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^transformer\.encoder\.part_norm\.", "norm."),
    (r"^part_head\.", "head."),
    (r"^transformer\.encoder\.layer\.", "blocks."),
    (r"\.attention_norm\.", ".norm1."),
    (r"\.ffn_norm\.", ".norm2."),
    (r"\.ffn\.", ".mlp."),
    (r"\.attn\.out\.", ".attn.proj."),
)


def load_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official checkpoint to our names; query, key and value become one matrix."""
    ours = rename_keys(state_dict, *OFFICIAL)
    for name in [name for name in ours if ".attn.query." in name]:
        parts = [ours.pop(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        ours[name.replace(".query.", ".qkv.")] = torch.cat(parts)
    return ours


VARIANTS = {"rams_trans_base_patch32_448": {"img_size": 448, "patch_size": 32, "reg_tokens": 1, "num_classes": 200}}

register_variants(
    __name__,
    RAMSTrans,
    VARIANTS,
    kind="transformer",
    out_indices=3,
    paper_ids="arXiv:2107.08192",
    num_classes=200,
    first_conv="patch_embed.proj",
    classifier="head",
)
