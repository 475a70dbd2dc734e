"""The one adapter between timm's models and the backbone contract."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.models import model_entrypoint
from torch import Tensor, nn

from ssl_vit import plugins
from ssl_vit.backbones.adapter import AdaptedBackbone, spread
from ssl_vit.backbones.anatomy import Anatomy, patch_embedding
from ssl_vit.backbones.backbone import Features, Visible
from ssl_vit.backbones.layout import TimmModel

LOCALITY = 1.0  # how much less a head looks at what is a patch further off, in its logits


class TimmBackbone(AdaptedBackbone):
    """A timm model behind the contract.

    ``model.state_dict()`` loads in ``timm.create_model(name, num_classes=0, **model_args)``. With `masked`, where there
    is a patch embedding, the mask token is an embedding [D] that hides those of patches.
    """

    def __init__(self, model: TimmModel, anatomy: Anatomy, masked: bool = False) -> None:
        embedding = patch_embedding(model)
        super().__init__(model, anatomy, masked and embedding is None)
        self._mask: Tensor | None = None  # of the pass under way, for the hooks
        self._kept: Tensor | None = None  # likewise
        if self.info.drops_patches:
            model.patch_drop.register_forward_hook(self._drop_patches)
        if masked and embedding is not None:
            self.mask_token = nn.Parameter(torch.empty(embedding.proj.out_channels))
            nn.init.trunc_normal_(self.mask_token, std=0.02)  # as BEiT's (arXiv 2106.08254)
            embedding.register_forward_hook(self._hide_embeddings)

    def architecture(self) -> dict[str, Any]:
        """timm's config.json, and the plugin where the model is one's."""
        own = self.model.pretrained_cfg
        model_args = {key: value for key, value in self.model_args.items() if key != "img_size"}
        if own.get("fixed_input_size") or "img_size" in self.model_args:
            # Said outright: timm takes it from its own table else, and resizes the positions without a word.
            model_args["img_size"] = list(self.info.size)
        source = plugins.source_of(model_entrypoint(self.info.name).__module__)
        return {
            "architecture": self.info.name,
            "num_classes": 0,
            "num_features": self.model.num_features,
            "model_args": model_args,
            "pretrained_cfg": {
                "input_size": [3, *self.info.size],
                "fixed_input_size": bool(own.get("fixed_input_size")),
                "interpolation": "bicubic",
                "crop_pct": 0.875,
                "crop_mode": "center",
                "mean": list(self.info.mean),
                "std": list(self.info.std),
                "num_classes": 0,
                # Where timm puts a new classifier and other input channels when these weights are fine-tuned.
                "first_conv": own.get("first_conv"),
                "classifier": own.get("classifier"),
                "license": "unspecified",
            },
        } | ({"plugin": source} if source else {})

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Features:
        """images: [B, 3, H, W] normalised; mask: bool [B, h, w], True = hidden, of the patch grid.

        Hidden are the patch embeddings, or without a patch embedding the pixels, that lie under the mask; a mask that
        is coarser than the patch embedding (a Swin's, at the stride of its last stage) covers several of them.

        Errors: ValueError for a mask where there is no mask token (``masked=True`` makes one).
        """
        if mask is None or self.mask_token is None or self.info.patch is None:
            return super().forward(images, mask)
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
        hidden = spread(self._mask, grid, self.layout.stride // embedding.feat_ratio())
        token = self.mask_token.to(embedded.dtype)
        if embedded.ndim == 3:
            return torch.where(hidden.flatten(1)[..., None], token, embedded)
        if embedding.output_fmt == "NHWC":
            return torch.where(hidden[..., None], token, embedded)
        return torch.where(hidden[:, None], token[:, None, None], embedded)


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
