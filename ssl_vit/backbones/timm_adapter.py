"""The one adapter between timm's models and the backbone contract."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ssl_vit.backbones.anatomy import Anatomy, patch_embedding
from ssl_vit.backbones.backbone import Backbone, Features, Visible
from ssl_vit.backbones.layers import Size
from ssl_vit.backbones.layout import TimmModel

LOCALITY = 1.0  # how much less a head looks at what is a patch further off, in its logits


class TimmBackbone(Backbone):
    """A timm model behind the contract.

    ``model`` is timm's own, so that ``model.state_dict()`` loads in ``timm.create_model(name, num_classes=0,
    **timm_args)``. With ``masked`` the adapter owns a learned ``mask_token``: a patch embedding [D], or without one a
    colour [3]. (The mean colour, 0 everywhere, makes layer norms divide by nothing: gradients overflow.)
    """

    def __init__(self, model: TimmModel, anatomy: Anatomy, masked: bool = False) -> None:
        super().__init__()
        self.model = model
        self.info = anatomy.info
        self.layout = anatomy.layout
        self.timm_args: dict[str, Any] = dict(anatomy.weight_args)
        self.mask_token: nn.Parameter | None = None
        self._mask: Tensor | None = None  # of the pass under way, for the hooks
        self._kept: Tensor | None = None  # likewise
        if self.info.drops_patches:
            model.patch_drop.register_forward_hook(self._drop_patches)
        embedding = patch_embedding(model)
        if masked and embedding is not None:
            self.mask_token = nn.Parameter(torch.empty(embedding.proj.out_channels))
            nn.init.trunc_normal_(self.mask_token, std=0.02)  # as BEiT's (arXiv 2106.08254)
            embedding.register_forward_hook(self._hide_embeddings)
        elif masked:
            self.mask_token = nn.Parameter(torch.randn(3))

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Features:
        """images: [B, 3, H, W] normalised; mask: bool [B, h, w], True = hidden, of the patch grid.

        Hidden are the patch embeddings, or without a patch embedding the pixels, that lie under the mask; a mask that
        is coarser than the patch embedding (a Swin's, at the stride of its last stage) covers several of them.

        Errors: ValueError for a mask where there is no mask token (``masked=True`` makes one).
        """
        if mask is not None:
            if self.mask_token is None:
                raise ValueError(f"{self.info.name}: no mask token; create the backbone with masked=True")
            if self.info.patch is None:
                hidden = _spread(mask, (images.shape[-2], images.shape[-1]), self.layout.stride)
                images = torch.where(hidden[:, None], self.mask_token[:, None, None].to(images.dtype), images)
                mask = None
        self._mask = mask
        try:
            return self.layout.read(self.model, images)
        finally:
            self._mask = None

    def visible(self, images: Tensor, kept: Tensor) -> Visible:
        """images: [B, 3, H, W]; kept: int64 [B, N], numbers of patches, counted row by row.

        Errors: ValueError for a model that isn't a plain transformer (see ``info.drops_patches``).
        """
        if not self.info.drops_patches:
            raise ValueError(f"{self.info.name}: can't leave patches out; it isn't a plain transformer")
        self._kept = kept + self.layout.prefix
        try:
            tokens = self.model.forward_features(images)
        finally:
            self._kept = None
        prefix, patches = tokens[:, : self.layout.prefix], tokens[:, self.layout.prefix :]
        return Visible(self.layout.pool(self.model, tokens, patches.mT[..., None]), prefix, patches)

    @torch.no_grad()
    def place_patches(self, positions: Tensor, fixed: bool) -> None:
        """Begin with these positions of the patches, [H * W, D], in timm's ``pos_embed``; fixed: never train them."""
        table = getattr(self.model, "pos_embed", None)
        lengths = {len(positions), len(positions) + self.layout.prefix}
        if isinstance(table, nn.Parameter) and table.ndim == 3 and table.shape[1] in lengths:
            table.zero_()
            table[0, -len(positions) :] = positions
            table.requires_grad_(not fixed)

    @torch.no_grad()
    def look_at_neighbours(self) -> None:
        """In the tables that timm and we call ``relative_position_bias_table``, [offsets, heads]."""
        for name, table in self.model.named_parameters():
            if name.endswith(".relative_position_bias_table") and table.ndim == 2:
                side = math.isqrt(len(table))
                if side % 2 and side**2 <= len(table) <= side**2 + 3:  # BEiT's have three more, for its class token
                    table[: side**2] = neighbour_biases(side, table.shape[1])

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> the map of every stage, [B, C_i, H/s_i, W/s_i], finest first."""
        return self.layout.pyramid(self.model, images)

    def _drop_patches(self, _: Any, __: Any, tokens: Tensor) -> Tensor:
        """Of tokens [B, P + H * W, D], which have their positions by now, the prefix and the patches kept."""
        if self._kept is None:
            return tokens
        chosen = tokens.gather(1, self._kept[..., None].expand(-1, -1, tokens.shape[-1]))
        return torch.cat([tokens[:, : self.layout.prefix], chosen], dim=1)

    def _hide_embeddings(self, embedding: Any, images: tuple[Tensor], embedded: Tensor) -> Tensor:
        """The mask token in place of hidden patches, in [B, H * W, D], [B, H, W, D] or [B, D, H, W]."""
        if self._mask is None or self.mask_token is None:
            return embedded
        grid = embedding.dynamic_feat_size(images[0].shape[-2:])
        hidden = _spread(self._mask, grid, self.layout.stride // embedding.feat_ratio())
        token = self.mask_token.to(embedded.dtype)
        if embedded.ndim == 3:
            return torch.where(hidden.flatten(1)[..., None], token, embedded)
        if embedding.output_fmt == "NHWC":
            return torch.where(hidden[..., None], token, embedded)
        return torch.where(hidden[:, None], token[:, None, None], embedded)


def _spread(mask: Tensor, size: Size, stride: int) -> Tensor:
    """A mask [B, h, w] on the finer grid `size` (H, W), of which a cell of the mask is `stride` places wide.

    >>> _spread(torch.tensor([[[True, False, True]]]), (1, 5), 2).int()
    tensor([[[1, 1, 0, 0, 1]]], dtype=torch.int32)
    """
    rows, columns = (_cells(side, cells, stride, mask) for side, cells in zip(size, mask.shape[1:], strict=True))
    return mask[:, rows[:, None], columns]


def _cells(side: int, cells: int, stride: int, like: Tensor) -> Tensor:
    """Which of a mask's `cells` each of `side` places lies in; the last one is cut off, or takes what is over."""
    places = torch.arange(side, device=like.device)
    if cells in (side // stride, -(-side // stride)):
        return (places // stride).clamp(max=cells - 1)
    return places * cells // side  # a map that loses cells at its border, or isn't as fine as timm says


def neighbour_biases(side: int, heads: int) -> Tensor:
    """Biases [side * side, heads] for offsets of rows and columns that are 0 in the middle: each head's are largest one
    patch away, and fall with the squared distance from there.

    >>> neighbour_biases(3, 4).argmax(0)  # to the right, down, to the left, up
    tensor([5, 7, 3, 1])
    """
    offsets = torch.arange(side) - side // 2
    rows, columns = torch.meshgrid(offsets, offsets, indexing="ij")
    angles = 2 * math.pi * torch.arange(heads) / heads
    distances = (rows[..., None] - angles.sin()).square() + (columns[..., None] - angles.cos()).square()
    return -LOCALITY * distances.flatten(0, 1)
