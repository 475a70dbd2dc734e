"""The settings that methods with a frozen teacher share. Needs no torch before a teacher is read."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from ssl_vit.data.plan import View, ViewPlan
from ssl_vit.errors import UserError
from ssl_vit.methods.base_config import (
    AUTO,
    SMALL,
    TINY,
    Auto,
    Choices,
    Colour,
    Count,
    Fraction,
    MethodConfig,
    NonNegative,
    Positive,
    Scale,
    Situation,
    optimiser_choices,
)

if TYPE_CHECKING:
    from ssl_vit.methods.frozen_teacher import Source

LARGEST_QUEUE = 8192


class TaughtConfig(MethodConfig):
    """A teacher, how it looks at the images, and what is learnt of its pooled vectors."""

    teacher: str | None = None
    """The frozen teacher: a run, an export, a hub id, or any file that `ssl-vit inspect` recognises."""
    teacher_backbone: str | None = None
    """timm's name of the teacher's network, where its file does not say it."""
    teacher_layer: int = -1
    """The teacher's layer that is learnt, counted as timm counts, from 0 or from the end; -1 is what it gives."""
    teacher_size: Auto[Count] = AUTO
    """Side of the images that the teacher sees, pixels."""
    teacher_mean: Colour | None = None
    """Mean of the images that the teacher was trained on, in [0, 1], where its file says another one or none."""
    teacher_std: Colour | None = None
    """Deviation of those images, likewise."""
    temperature: Positive = 0.07
    """Temperature of similarities (LightlyTrain: 0.07)."""
    queue_size: Auto[Count] = AUTO
    """The teacher's vectors of other images that an image is compared with (LightlyTrain: at most 8192)."""
    pooled_weight: NonNegative = 1.0
    """Weight of the images' similarities to the queue."""
    scale: Auto[Scale] = AUTO
    """Share of the image's area that a crop covers, low and high."""
    flip: Fraction = 0.5
    """Share of crops that are mirrored; 0 where left and right differ, as in text."""
    colour_strength: Fraction = 0.5
    """How far colours change, for teacher and student alike: 1 is BYOL's, 0 leaves them."""

    def source(self) -> Source:
        """Where the teacher is read from; UserError where none is named."""
        from ssl_vit.methods.frozen_teacher import Source

        if self.teacher is None:
            raise UserError(
                f"method.teacher: {self.name} learns from a frozen teacher; set method.teacher=WEIGHTS, a run or any "
                "file that ssl-vit inspect recognises"
            )
        return Source(self.teacher, self.teacher_backbone, self.teacher_mean, self.teacher_std)

    def choose(self, given: Situation) -> Choices:
        """LightlyTrain's queue and rate, and crops in which teacher and student see enough."""
        small = given.images < SMALL
        queue = max(1, min(LARGEST_QUEUE, given.images // 2))
        why = "half of the images" if queue < LARGEST_QUEUE else "LightlyTrain's largest"
        choices: Choices = {
            "method.teacher_size": self._teacher_size(given),
            "method.queue_size": (queue, why),
            "method.scale": ((0.3, 1.0), "less of so small an image shows nothing")
            if given.image_size < TINY
            else ((0.14, 1.0), "LightlyTrain's"),
        }
        recipe = optimiser_choices(given, "LightlyTrain's AdamW", lr=(5e-4, 1536), weight_decay=0.04, warmup_epochs=10)
        rate = 5e-4 * math.sqrt(given.batch_size / 1536)
        if given.kind == "convolutional" and small:
            rate = float(f"{1e-3 * math.sqrt(given.batch_size / 128):.2g}")
            recipe["optim.lr"] = (rate, "small set: 1e-3 for batch 128, scaled by the root")
        elif not small:
            recipe["optim.lr"] = (rate, "5e-4 x root of batch / 1536, LightlyTrain's")
        return choices | recipe

    def _teacher_size(self, given: Situation) -> tuple[int, str]:
        """As large as the student's, in whole patches, but with a grid that is no coarser than the student's."""
        if self.teacher is None:
            return given.image_size, "as the student's"
        from ssl_vit.methods.frozen_teacher import network_of

        info = network_of(self.source()).info
        if not info.any_size:
            return info.size[0], f"what {info.name} was built for"
        same = max(round(given.image_size / info.multiple), -(-info.smallest // info.multiple), 1) * info.multiple
        grid = max(given.grid) * info.stages[-1].stride
        finer = -(-grid // info.multiple) * info.multiple
        if finer > same and finer <= max(info.size):
            return finer, f"so that {info.name} has as many patches as the student"
        return same, f"the student's {given.image_size} pixels, in whole patches of {info.name}"

    def check(self, given: Situation) -> None:
        """A teacher that can be read, and that takes images of the size that is set."""
        from ssl_vit.methods.frozen_teacher import check_size, checked_layer, network_of

        network = network_of(self.source())
        check_size(network.info, self.teacher_size)
        checked_layer(network, self.teacher_layer)

    def check_grids(self, given: Situation, key: str) -> None:
        """UserError where teacher or student has a single patch: there is nothing to compare; key: what it is for."""
        from ssl_vit.methods.frozen_teacher import grid_at, network_of

        info = network_of(self.source()).info
        rows, columns = grid_at(info, self.teacher_size)
        if rows * columns == 1:
            raise UserError(
                f"method.{key}: at {self.teacher_size} pixels the teacher, {info.name}, has a single patch, which no "
                f"grid can be matched with; raise method.teacher_size, or set method.{key}=0"
            )
        if given.grid == (1, 1):
            raise UserError(
                f"method.{key}: at {given.image_size} pixels the student has a single patch, which the teacher's "
                f"{rows} x {columns} can't be matched with; raise backbone.image_size, or set method.{key}=0"
            )

    def views(self, image_size: int) -> ViewPlan:
        """One crop, which teacher and student see with the same colours."""
        view = View("image", 1, image_size, scale=self.scale, flip_p=self.flip)
        if self.colour_strength:
            brightness, saturation, hue = (self.colour_strength * each for each in (0.4, 0.2, 0.1))
            jitter = (brightness, brightness, saturation, hue)
            view = replace(view, jitter=jitter, jitter_p=0.8, gray_p=0.2 * self.colour_strength)
        return ViewPlan((view,))
