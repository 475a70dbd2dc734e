"""DINOv2's hyper-parameters (arXiv 2304.07193): iBOT's, and KoLeo's weight. Needs no torch.

"Official" is the authors' ssl_default_config.yaml, which trains their ViT-L/16 on ImageNet-1k (vitl16_short.yaml).
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from ssl_vit.methods.base_config import SMALL, Choices, NonNegative, Situation
from ssl_vit.methods.dino_config import OFFICIAL
from ssl_vit.methods.ibot_config import Config as IBOTConfig
from ssl_vit.registry import register_method

RATE = 4e-3  # of AdamW for batches of 1024, by the root of the batch, with layers' rates falling by 0.9
DEEP_PATHS = 1024  # the width from which on the official share of dropped paths, 0.3, is taken; 0.1, DINO's, below


@register_method("dinov2", loss="ssl_vit.methods.dinov2:DINOv2")
class Config(IBOTConfig):
    """Self-distillation of whole crops and of hidden patches by separate heads, with features spread out."""

    name: Literal["dinov2"] = "dinov2"  # type: ignore[assignment]  # iBOT's settings under another name
    """Name of the method, as `ssl-vit list methods` prints it."""

    idea: ClassVar[str] = (
        "DINO for whole crops and iBOT for hidden patches, each with a head of its own; no prototype gets more than "
        "its share, and features are kept away from their nearest neighbour."
    )
    choose_when: ClassVar[str] = (
        "You have very many images and a transformer, or go on from DINOv2's or DINOv3's weights, and want features "
        "for whole images and for dense tasks alike."
    )

    separate_heads: bool = True
    """A head for images and another one for patches (official: true for ViT-L/14 and ViT-g/14, false for ViT-L/16)."""
    koleo_weight: NonNegative = 0.1
    """Weight of KoLeo, the mean of minus the logarithm of the distance to the nearest other image's features, of each
    global crop (official: 0.1)."""

    def choose(self, given: Situation) -> Choices:
        """The official recipe; on small sets what works for DINO there."""
        choices = super().choose(given)
        if given.images < SMALL:
            return choices
        path = 0.3 if given.dim >= DEEP_PATHS else 0.1
        choices |= {
            "method.out_dim": (65536, OFFICIAL),
            "method.norm_last_layer": (False, OFFICIAL),
            "method.centering": ("sinkhorn", "official for ViT-L/14 and ViT-g/14"),
            "method.momentum": (0.992, OFFICIAL),
            "optim.lr": (RATE * math.sqrt(given.batch_size / 1024), "4e-3 x root of batch / 1024, official"),
            "optim.layer_decay": (0.9, OFFICIAL),
        }
        if given.drops_paths:
            choices["backbone.drop_path"] = (path, OFFICIAL if path == 0.3 else "DINO's for narrow networks")
        if given.kind == "convolutional":
            choices |= {"optim.optimizer": ("adamw", OFFICIAL), "optim.weight_decay": (0.04, OFFICIAL)}
            choices |= {"optim.weight_decay_end": (0.4, OFFICIAL)}
        if choices["method.global_scale"][0] == (0.25, 1.0):  # iBOT's, of images that are large enough
            choices |= {
                "method.local_crops": (8, OFFICIAL),
                "method.global_scale": ((0.32, 1.0), OFFICIAL),
                "method.local_scale": ((0.05, 0.32), OFFICIAL),
            }
        return choices
