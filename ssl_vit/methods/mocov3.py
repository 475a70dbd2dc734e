"""MoCo v3: contrast within the batch, between a predictor and a moving average (2104.02057)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.methods.heads import mlp
from ssl_vit.methods.method import Progress, Step
from ssl_vit.methods.mocov3_config import Config
from ssl_vit.methods.siamese import Siamese
from ssl_vit.methods.teacher import average_into, gather_over_ranks, rank_and_world
from ssl_vit.schedules import cosine


class MoCoV3(Siamese):
    """From each view the student picks its image's other view, by the teacher's key, among the batch's keys."""

    config: Config

    def __init__(self, config: Config, backbone: Backbone, image_size: int) -> None:
        dim, hidden, out = backbone.info.dim, config.hidden_dim, config.out_dim
        projector = mlp([dim, hidden, hidden, out], batch_norm=True, activation=nn.ReLU, bias=False, norm_output=True)
        predictor = mlp([out, hidden, out], batch_norm=True, activation=nn.ReLU, bias=False, norm_output=True)
        if config.freeze_patch_embedding:
            for name, parameter in backbone.named_parameters():
                if "patch_embed.proj." in name:
                    parameter.requires_grad_(False)
        super().__init__(config, backbone, image_size, projector, predictor)

    def forward(self, batch: list[Tensor], progress: Progress) -> Step:
        """Batch: views 1 and 2, [B, 3, S, S] each."""
        seen = self.encode(batch)
        (query1, query2), (key1, key2) = seen.queries, seen.keys
        temp = self.config.temperature
        loss1, first1 = contrast_in_batch(query1, gather_over_ranks(key2), temp)
        loss2, first2 = contrast_in_batch(query2, gather_over_ranks(key1), temp)
        images = len(key1) * rank_and_world()[1]
        self.uniform_loss = 4 * temp * math.log(images)
        return Step(loss1 + loss2, {"own_key_first": (first1 + first2) / 2}, seen.features)

    def remark(self, parts: dict[str, float]) -> str:
        """How often the right key is found."""
        return f"Of the views {100 * parts['own_key_first']:.0f} % find their own key first."

    def after_step(self, progress: Progress) -> None:
        """The teacher moves, with the momentum of the step that will use it."""
        momentum = cosine(self.config.momentum, 1.0, progress.step + 1, progress.total)
        average_into(self.teacher, self.student, momentum)


def contrast_in_batch(queries: Tensor, keys: Tensor, temp: float) -> tuple[Tensor, Tensor]:
    """Algorithm 1's loss of queries [B, P] against the keys of all ranks [world * B, P], times 2 · temp.

    Returns the loss [] and the share of queries [] that are nearest to their own key.
    """
    with torch.autocast(queries.device.type, enabled=False):
        logits = queries @ keys.T / temp
    own = torch.arange(len(queries), device=logits.device) + rank_and_world()[0] * len(queries)
    first = (logits.detach().argmax(1) == own).to(logits.dtype).mean()
    return 2 * temp * F.cross_entropy(logits, own), first
