"""MoBY's official networks, made of our parts."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from ssl_vit.backbones import create_backbone
from ssl_vit.methods.heads import mlp
from ssl_vit.methods.moby import MoBY
from ssl_vit.methods.moby_config import Config

PARTS = {
    "encoder": "student.backbone.model",
    "projector": "student.projector",
    "encoder_k": "teacher.backbone.model",
    "projector_k": "teacher.projector",
}
LAYERS = {"linear_hidden.1.": "0.", "linear_hidden.2.": "1.", "linear_out.": "3."}


class Head(nn.Sequential):
    """Projector on a backbone's vectors, or predictor on those of length 256."""

    def __init__(self, dim: int) -> None:
        super().__init__(*mlp([dim, 4096, 256], batch_norm=True, activation=nn.ReLU))


class Network(MoBY):
    """Both encoders; gives the online one's prediction."""

    def __init__(self, backbone: str) -> None:
        super().__init__(Config(queue_size=4096), create_backbone(backbone), 224)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, 224, 224] -> [B, 256]."""
        prediction: Tensor = self.predictor(self.student(images)[0])
        return prediction


def load_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official names to ours; a Swin's downsampling belongs to the stage before it there, to the one after in timm."""
    ours = {}
    for name, weight in weights.items():
        for official, layer in LAYERS.items():
            name = name.replace(official, layer)
        name = re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name)
        part, _, rest = name.partition(".")
        ours[f"{PARTS.get(part, part)}.{rest}"] = weight
    return ours
