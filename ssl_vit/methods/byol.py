"""BYOL: bootstrap your own latent, a prediction without negatives (2006.07733)."""

from __future__ import annotations

from torch import Tensor, nn

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.methods.byol_config import Config
from ssl_vit.methods.heads import mlp
from ssl_vit.methods.method import Progress, Step
from ssl_vit.methods.siamese import Siamese
from ssl_vit.methods.teacher import average_into
from ssl_vit.schedules import cosine


class BYOL(Siamese):
    """From each view the student predicts the teacher's projection of the other.

    The loss alone would be least for a constant; ``target_spread``, near 1 for targets in all directions and 0 for one
    and the same, shows that this is not happening.
    """

    config: Config

    def __init__(self, config: Config, backbone: Backbone, image_size: int) -> None:
        dim, hidden, out = backbone.info.dim, config.hidden_dim, config.out_dim
        projector = mlp([dim, hidden, out], batch_norm=True, activation=nn.ReLU)
        predictor = mlp([out, hidden, out], batch_norm=True, activation=nn.ReLU)
        super().__init__(config, backbone, image_size, projector, predictor)

    def forward(self, batch: list[Tensor], progress: Progress) -> Step:
        """Batch: views 1 and 2, [B, 3, S, S] each."""
        seen = self.encode(batch)
        (query1, query2), (key1, key2) = seen.queries, seen.keys
        loss = squared_distance(query1, key2) + squared_distance(query2, key1)
        spread = key1.var(dim=0, correction=0).sum().sqrt()
        return Step(loss, {"target_spread": spread}, seen.features)

    def remark(self, parts: dict[str, float]) -> str:
        """How far the targets are from being one and the same."""
        return f"Targets spread {parts['target_spread']:.2f} of 1 (0: all images have one target)."

    def after_step(self, progress: Progress) -> None:
        """The teacher moves towards the student."""
        momentum = cosine(self.config.momentum, 1.0, progress.step, progress.total)
        average_into(self.teacher, self.student, momentum)


def squared_distance(predictions: Tensor, targets: Tensor) -> Tensor:
    """Equation 2, mean over images: squared distance of unit vectors [B, P], which is 2 - 2 cos."""
    return (predictions - targets).square().sum(dim=1).mean()
