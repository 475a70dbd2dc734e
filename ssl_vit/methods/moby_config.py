"""MoBY's hyper-parameters and views (arXiv 2105.04553). Needs no torch.

"Official" below is the authors' released recipe for Swin-T and DeiT-S, 300 epochs of ImageNet in batches of 512.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from ssl_vit.errors import UserError
from ssl_vit.methods.base_config import (
    AUTO,
    SMALL,
    Auto,
    Choices,
    Count,
    Positive,
    Situation,
    TwoViewConfig,
    optimiser_choices,
)
from ssl_vit.registry import register_method

OFFICIAL_QUEUE = 4096
OFFICIAL_BATCHES = 8  # of 512, which it holds


@register_method("moby", loss="ssl_vit.methods.moby:MoBY")
class Config(TwoViewConfig):
    """Contrast of each view with its other view's key and with a queue of the keys of earlier images."""

    name: Literal["moby"] = "moby"
    """Name of the method, as `ssl-vit list methods` prints it."""

    idea: ClassVar[str] = (
        "Each view must pick out its image's other view, as its moving average sees it, from a queue of other images."
    )
    needs: ClassVar[str] = "any backbone; a queue that whole batches fill"
    choose_when: ClassVar[str] = (
        "You pretrain for detection with small batches, on images of which a small crop does not tell what they show."
    )

    queue_size: Auto[Count] = AUTO
    """Keys in each of the two queues, a multiple of train.batch_size (official: 4096)."""
    temperature: Positive = 0.2
    """Temperature of the contrast (official: 0.2)."""

    def choose(self, given: Situation) -> Choices:
        """The official recipe, with a queue that fits the batch and the number of images."""
        optimiser = optimiser_choices(
            given,
            "official recipe",
            lr=(1e-3, 512),
            min_lr=5e-3,
            weight_decay=0.05,
            warmup_epochs=5.0,
            clip=5.0,
            drop_path=0.2,
        )
        return self.common_choices(given) | {"method.queue_size": _queue_for(given)} | optimiser

    def check(self, given: Situation) -> None:
        """The queue is filled by whole batches."""
        super().check(given)
        size, batch = self.queue_size, given.batch_size
        if size % batch:
            near = max(1, round(size / batch)) * batch
            raise UserError(
                f"method.queue_size: {size} keys are not filled by whole batches of {batch} images; "
                f"set method.queue_size={near}, or a train.batch_size that divides {size}"
            )


def _queue_for(given: Situation) -> tuple[int, str]:
    """The official size in whole batches; on small sets the official number of batches.

    There the teacher is quick, and a key of many steps ago is of another network: measured on 7,659 small drawings, 29
    batches taught nothing.
    """
    if given.images >= SMALL:
        size = max(1, OFFICIAL_QUEUE // given.batch_size) * given.batch_size
        return size, "official recipe" if size == OFFICIAL_QUEUE else f"official {OFFICIAL_QUEUE}, in whole batches"
    most = min(OFFICIAL_BATCHES * given.batch_size, given.images // 4, OFFICIAL_QUEUE)
    size = max(1, most // given.batch_size) * given.batch_size
    return size, f"small set: {size // given.batch_size} batches, as few steps old as the official {OFFICIAL_BATCHES}"
