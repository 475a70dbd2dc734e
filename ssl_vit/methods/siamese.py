"""What BYOL, MoCo v3 and MoBY share: two encoders, one the other's moving average, and a predictor between them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.data.plan import ViewPlan
from ssl_vit.methods.base_config import TwoViewConfig
from ssl_vit.methods.method import Method
from ssl_vit.methods.targets import exact
from ssl_vit.methods.teacher import as_teacher


class Encoder(nn.Module):
    """A backbone and the projector on it."""

    def __init__(self, backbone: Backbone, projector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.projector = backbone, projector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, S, S] to projections [B, P] and features [B, D]."""
        features = self.backbone(images).pooled
        return self.projector(features), features


class Encoded(NamedTuple):
    """Two views of B images, seen by both encoders; all vectors of unit length."""

    queries: tuple[Tensor, Tensor]  # [B, P] each, the student's predictions from views 1 and 2
    keys: tuple[Tensor, Tensor]  # [B, P] each, the teacher's projections of views 1 and 2, without gradient
    features: Tensor  # [B, D] the student's, of view 1, for health


class Siamese(Method):
    """A student predicts, from each of two views, what its moving average says of the other (BYOL, 2006.07733).

    The views pass through the networks one after the other, so that batch norm sees one kind of view at a time, as in
    the papers. A subclass compares queries with keys and moves the teacher. The student's backbone is the one that
    the three papers evaluate.
    """

    def __init__(
        self, config: TwoViewConfig, backbone: Backbone, image_size: int, projector: nn.Module, predictor: nn.Module
    ) -> None:
        super().__init__()
        self.config, self.image_size = config, image_size
        self.student = Encoder(backbone, projector)
        self.predictor = predictor
        self.teacher = as_teacher(self.student)

    def views(self) -> ViewPlan:
        """Two global crops, differently augmented."""
        return self.config.views(self.image_size)

    def encode(self, batch: list[Tensor]) -> Encoded:
        """Batch: views 1 and 2, [B, 3, S, S] each."""
        first, second = batch
        projection1, features = self.student(first)
        projection2, _ = self.student(second)
        with torch.no_grad():
            keys = unit(self.teacher(first)[0]), unit(self.teacher(second)[0])
        queries = unit(self.predictor(projection1)), unit(self.predictor(projection2))
        return Encoded(queries, keys, features.detach())

    def exported(self) -> Backbone:
        """The student's backbone."""
        return self.student.backbone


def unit(x: Tensor) -> Tensor:
    """Rows of length one, [B, P], in at least float32."""
    return F.normalize(exact(x), dim=-1)
