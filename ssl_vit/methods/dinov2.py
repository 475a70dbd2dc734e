"""DINOv2: DINO's loss on images and iBOT's on patches, each with a head of its own, and features spread out
(2304.07193).
"""

from __future__ import annotations

from torch import Tensor

from ssl_vit.backbones.backbone import Backbone, Features
from ssl_vit.methods.dense import DenseDINO
from ssl_vit.methods.dino import Branch
from ssl_vit.methods.dinov2_config import Config
from ssl_vit.methods.ibot import IBOT
from ssl_vit.methods.koleo import koleo
from ssl_vit.methods.method import Progress


class DINOv2(IBOT):
    """iBOT with two heads, targets that spread over all prototypes, and KoLeo on the student's global crops."""

    config: Config

    def new_student(self, backbone: Backbone) -> Branch:
        """The backbone with a head for images and another one for patches, or one for both."""
        return DenseDINO.new_student(self, backbone) if self.config.separate_heads else super().new_student(backbone)

    def beside(self, masked: Features, images: Tensor, progress: Progress) -> dict[str, tuple[float, Tensor]]:
        """KoLeo of each of the two global crops, so that an image's own other crop is nobody's neighbour, and Gram."""
        found = super().beside(masked, images, progress)
        if self.config.koleo_weight > 0:
            first, second = masked.pooled.chunk(2)
            found["koleo_loss"] = self.config.koleo_weight, koleo(first) + koleo(second)
        return found
