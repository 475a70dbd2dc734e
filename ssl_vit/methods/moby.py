"""MoBY: MoCo v2's queues with BYOL's asymmetric encoders (2105.04553)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.methods.heads import mlp
from ssl_vit.methods.method import Progress, Step
from ssl_vit.methods.moby_config import Config
from ssl_vit.methods.siamese import Siamese
from ssl_vit.methods.teacher import average_into, gather_over_ranks, rank_and_world
from ssl_vit.schedules import cosine

STALE = 0.9  # share of the teacher that is newer than a key, above which the key says little


class MoBY(Siamese):
    """From each view the student picks its image's other view, by the teacher's key, among the keys of a queue.

    The queues begin with random keys, which are easy to tell from an image's own: the loss rises until they are full
    of real ones, and that is no fault. ``queue_filled`` says how far that is.
    """

    config: Config

    def __init__(self, config: Config, backbone: Backbone, image_size: int) -> None:
        dim, hidden, out = backbone.info.dim, config.hidden_dim, config.out_dim
        projector = mlp([dim, hidden, out], batch_norm=True, activation=nn.ReLU)
        predictor = mlp([out, hidden, out], batch_norm=True, activation=nn.ReLU)
        super().__init__(config, backbone, image_size, projector, predictor)
        size = config.queue_size
        self.uniform_loss = 2 * math.log(1 + size)  # two contrasts, each of 1 + size equal logits
        self.queue1: Tensor  # [K, P] keys of first views
        self.queue2: Tensor  # of second views
        self.register_buffer("queue1", F.normalize(torch.randn(size, out), dim=1))
        self.register_buffer("queue2", F.normalize(torch.randn(size, out), dim=1))

    def forward(self, batch: list[Tensor], progress: Progress) -> Step:
        """Batch: views 1 and 2, [B, 3, S, S] each."""
        seen = self.encode(batch)
        (query1, query2), (key1, key2) = seen.queries, seen.keys
        temp = self.config.temperature
        loss1, first1 = contrast(query1, key2, self.queue2, temp)
        loss2, first2 = contrast(query2, key1, self.queue1, temp)
        self.seen = {"queue1": key1, "queue2": key2}

        steps = len(self.queue1) / (len(key1) * progress.parts * rank_and_world()[1])
        age = min(float(progress.step), steps)
        kept = cosine(self.config.momentum, 1.0, progress.step, progress.total) ** age
        parts = {
            "own_key_first": (first1 + first2) / 2,
            "queue_filled": loss1.new_full((), age / steps),
            "queue_stale": loss1.new_full((), 1.0 - kept),  # share of the teacher that is newer than its oldest key
        }
        return Step(loss1 + loss2, parts, seen.features)

    def remark(self, parts: dict[str, float]) -> str:
        """How often the right key is found, and what the queue is worth."""
        found = f"Of the views {100 * parts['own_key_first']:.0f} % find their own key first."
        if parts["queue_filled"] < 1:
            full = f"The queue is {100 * parts['queue_filled']:.0f} % full of real keys"
            return f"{found} {full}; until then a rising loss is normal."
        stale = f"{100 * parts['queue_stale']:.0f} % of the teacher is newer than the oldest key in the queue"
        hint = "; set a smaller method.queue_size" if parts["queue_stale"] > STALE else ""
        return f"{found} {stale}{hint}."

    def after_step(self, progress: Progress) -> None:
        """New keys take the place of the oldest; the teacher moves.

        The authors' code moves the teacher before it makes keys, with that step's momentum: here that is the end of the
        step before.
        """
        for name, keys in self.seen.items():
            enqueue(self.get_buffer(name), gather_over_ranks(keys), progress.step)
        momentum = cosine(self.config.momentum, 1.0, progress.step + 1, progress.total)
        average_into(self.teacher, self.student, momentum)


def contrast(queries: Tensor, keys: Tensor, queue: Tensor, temp: float) -> tuple[Tensor, Tensor]:
    """InfoNCE (1807.03748) of queries [B, P] with their own keys [B, P] against the queue's [K, P].

    Returns the loss [] and the share of queries [] that are nearer to their own key than to all the others.
    """
    with torch.autocast(queries.device.type, enabled=False):
        own = (queries * keys).sum(1, keepdim=True)
        others = queries @ queue.T
        logits = torch.cat([own, others], dim=1) / temp
    target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    first = (own.detach().squeeze(1) > others.detach().amax(1)).to(logits.dtype).mean()
    return F.cross_entropy(logits, target), first


def enqueue(queue: Tensor, keys: Tensor, step: int) -> None:
    """Write the keys [B, P] of a step over the oldest of a queue [K, P]; the place follows from the step alone.

    >>> queue = torch.zeros(4, 1)
    >>> for step in range(3):
    ...     enqueue(queue, torch.full((2, 1), float(step)), step)
    >>> queue.flatten().tolist()
    [2.0, 2.0, 1.0, 1.0]
    """
    start = step * len(keys) % len(queue)
    queue[start : start + len(keys)] = keys.to(queue.dtype)
