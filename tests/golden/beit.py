"""BEiT's official network for pretraining, made of our parts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ssl_vit.backbones import create_backbone
from ssl_vit.methods.masked import hidden_rows, linear

SHARED = {"use_shared_rel_pos_bias": True, "use_rel_pos_bias": False, "global_pool": "token"}
ABSOLUTE = {"use_abs_pos_emb": True, "use_rel_pos_bias": False, "init_values": 0.0, "global_pool": "token"}
PARTS = {"mask_token": "backbone.mask_token", "lm_head.weight": "head.weight", "lm_head.bias": "head.bias"}
MASKED = 75  # patches, the first of each image


class Network(nn.Module):
    """A backbone with a mask token, and the prediction of the words of hidden patches.

    absolute: positions are added to the patches, and branches aren't scaled, as in the paper's analysis.
    """

    def __init__(self, name: str, absolute: bool = False) -> None:
        super().__init__()
        self.backbone = create_backbone(name, model_args=ABSOLUTE if absolute else SHARED, masked=True)
        self.head = linear(self.backbone.info.patch_dim, 8192)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, 224, 224] -> logits of hidden patches, [75 * B, 8192]."""
        masks = (torch.arange(14 * 14) < MASKED).view(1, 14, 14).expand(len(images), -1, -1)
        logits: Tensor = self.head(hidden_rows(self.backbone(images, masks).patches, masks))
        return logits


def load_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official names to ours."""
    return {
        PARTS.get(name, f"backbone.model.{name}"): weight.flatten() if name == "mask_token" else weight
        for name, weight in weights.items()
    }
