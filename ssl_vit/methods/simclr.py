"""SimCLR: contrast within the batch, by one encoder (2002.05709)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.methods.heads import mlp
from ssl_vit.methods.joint import JointEmbedding, of_all_ranks
from ssl_vit.methods.method import Progress
from ssl_vit.methods.simclr_config import Config
from ssl_vit.methods.teacher import rank_and_world


class SimCLR(JointEmbedding):
    """Each view picks its image's other view from all the other views of the batch."""

    config: Config

    def __init__(self, config: Config, backbone: Backbone, image_size: int) -> None:
        widths = [backbone.info.dim, config.hidden_dim, config.out_dim]
        projector = mlp(widths, batch_norm=True, activation=nn.ReLU, bias=False, norm_output=True)
        super().__init__(config, backbone, image_size, projector)

    def compare(self, projections: Tensor, progress: Progress) -> tuple[Tensor, dict[str, Tensor]]:
        """NT-Xent, equation 1: the mean over all views of the cross-entropy of picking their own other view."""
        own = F.normalize(projections, dim=-1)
        loss, first = pick_other_view(own, of_all_ranks(own), self.config.temperature)
        self.uniform_loss = math.log(2 * len(own[0]) * rank_and_world()[1] - 1)
        return loss, {"own_view_first": first, "blind_loss": loss.new_full((), self.uniform_loss)}

    def remark(self, parts: dict[str, float]) -> str:
        """How often the other view is found."""
        return f"Of the views {100 * parts['own_view_first']:.0f} % find their image's other view first."


def pick_other_view(own: Tensor, every: Tensor, temp: float) -> tuple[Tensor, Tensor]:
    """The loss [] of unit vectors [2, B, P] among those of all processes [2, N, P], and the share that are right []."""
    images, among = own.shape[1], every.shape[1]
    logits = own.flatten(0, 1) @ every.flatten(0, 1).T / temp  # [2 B, 2 N]
    mine = torch.arange(images, device=own.device) + rank_and_world()[0] * images
    itself, other = torch.cat([mine, mine + among]), torch.cat([mine + among, mine])
    logits = logits.scatter(1, itself[:, None], -math.inf)
    first = (logits.detach().argmax(1) == other).to(own.dtype).mean()
    return F.cross_entropy(logits, other), first
