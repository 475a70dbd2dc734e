"""A training step reads one buffer of pixels, which becomes the views that a method is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ssl_vit.data.augment import augment
from ssl_vit.data.bad import BadFiles
from ssl_vit.data.params import Column
from ssl_vit.data.plan import ViewPlan
from ssl_vit.data.readers import in_shared_memory


@dataclass
class Batch:
    """A batch is what a step reads: the crops of B images, crop-major (all images of crop 0 first), View after View.

    One tensor holds all pixels and travels as one; ``views`` and ``params`` are parts of the two tensors, not copies.
    """

    plan: ViewPlan
    pixels: Tensor  # uint8 [B * plan.bytes()], [count * B, S, S, 3] of each View; empty where an image has no views
    values: Tensor  # float32 [B * plan.crops(), P], stays on the CPU
    index: Tensor  # int64 [B] of the images in the source
    bad: BadFiles  # the files that could not be read and were replaced
    boxes: Tensor | None = None  # [B, K, 4] in the first view, where the plan asks for some; see `boxes_in_crops`

    @classmethod
    def empty(cls, plan: ViewPlan, index: Sequence[int]) -> Batch:
        """Make room for the views of these images, in memory that processes share if a worker asks for it."""
        size = len(index) * plan.bytes()
        if not in_shared_memory():
            pixels = torch.empty(size, dtype=torch.uint8)
        else:  # as torch's own collation does it: what is not in shared memory would be copied there on its way
            shared = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            pixels = torch.empty(0, dtype=torch.uint8).set_(shared)
        values = torch.empty(len(index) * plan.crops(), len(Column))
        return cls(plan, pixels, values, torch.tensor(index), [])

    @property
    def places(self) -> list[Tensor]:
        """The crops lie in memory so: for each View uint8 [count, B, S, S, 3]."""
        shapes = [(view.count, len(self.index), view.size, view.size, 3) for view in self.plan.views]
        parts = torch.split(self.pixels, [math.prod(shape) for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    @property
    def views(self) -> list[Tensor]:
        """The crops are images so: for each View uint8 [count * B, 3, S, S], channels last in memory."""
        return [place.flatten(0, 1).permute(0, 3, 1, 2) for place in self.places]

    @property
    def params(self) -> list[Tensor]:
        """The crops' parameters are float32 [count * B, P] for each View, with the columns of ``params.Column``."""
        return list(torch.split(self.values, [view.count * len(self.index) for view in self.plan.views]))

    def divided(self, parts: int) -> list[Batch]:
        """Split the images, in order, into so many batches of equal size; their number must be a multiple of it."""
        size = len(self.index) // parts
        return [self] if parts == 1 else [self._some(slice(i * size, (i + 1) * size)) for i in range(parts)]

    def _some(self, images: slice) -> Batch:
        params = [rows.view(-1, len(self.index), len(Column))[:, images].flatten(0, 1) for rows in self.params]
        return replace(
            self,
            pixels=torch.cat([place[:, images].flatten() for place in self.places]),
            values=torch.cat(params),
            index=self.index[images],
            boxes=None if self.boxes is None else self.boxes[images],
        )

    def pin_memory(self) -> Batch:
        """Copy the pixels to pinned memory, as the DataLoader asks."""
        return replace(self, pixels=self.pixels.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """Move the images and boxes to a device; the parameters stay on the CPU, where `augment` wants them."""
        boxes = None if self.boxes is None else self.boxes.to(device, non_blocking=non_blocking)
        return replace(self, pixels=self.pixels.to(device, non_blocking=non_blocking), boxes=boxes)


def to_views(
    batch: Batch,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
    *,
    kernels: bool = False,
    channels_last: bool = False,
) -> list[Tensor]:
    """Move a batch to the device and augment it there: float32 [count * B, 3, S, S] for each View, then the boxes.

    kernels: see `augment`; channels_last: in which order they lie in memory; the shape is the same.
    """
    moved = batch.to(device)
    whole = torch.empty(len(batch.pixels), device=device)  # one piece of memory: the next batch finds it again
    views, begin = [], 0
    for images, params in zip(moved.views, moved.params, strict=True):
        out = whole[begin : begin + images.numel()]
        out = out.view(images.movedim(1, -1).shape).movedim(-1, 1) if channels_last else out.view(images.shape)
        views.append(augment(images, params, mean, std, kernels=kernels, out=out))
        begin += images.numel()
    return views if moved.boxes is None else [*views, moved.boxes]
