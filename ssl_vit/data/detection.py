"""Images with boxes on a square canvas, as detectors are trained and tested on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_vit.data.annotations import Annotations
from ssl_vit.data.bad import BadFiles
from ssl_vit.data.decode import BadImage, decode
from ssl_vit.data.loader import Item
from ssl_vit.data.outlines import Outline, drawn
from ssl_vit.data.scenes import Placement, SceneDataset
from ssl_vit.data.values import ORDINARY, Pixels

_LEAST = 2.0  # pixels a side below which what a crop leaves of a box is no object any more


@dataclass
class Scene:
    """A scene is an image at the upper left of a canvas of S x S pixels, with its n objects; None if unreadable."""

    index: int
    image: Tensor | None  # uint8 [3, S, S]
    extent: tuple[int, int]  # (height, width) of the image on the canvas, pixels
    boxes: Tensor  # float32 [n, 4] left, top, right, bottom, pixels of the canvas
    labels: Tensor  # int64 [n]
    masks: Tensor | None  # bool [n, S, S]
    scale: tuple[float, float]  # (x, y) canvas pixels per pixel of the original
    bad: BadFiles


class DetectionDataset(SceneDataset[Scene]):
    """The dataset turns (epoch, index) into a Scene.

    training: flipped at random and scaled by large-scale jitter, without crowds; else the whole image. masks: outlines
    are drawn, where all objects have one. pixels: how values become 8 bits.
    """

    def __init__(
        self,
        annotations: Annotations,
        size: int,
        *,
        training: bool,
        seed: int = 0,
        masks: bool = False,
        pixels: Pixels = ORDINARY,
    ) -> None:
        super().__init__(size, training=training, seed=seed, pixels=pixels)
        self.annotations, self.masks = annotations, masks

    def __len__(self) -> int:
        return len(self.annotations)

    def name(self, index: int) -> str:
        """Return an image's name."""
        return self.annotations.files[index]

    def __getitem__(self, item: Item) -> Scene:
        epoch, index = item
        try:
            image = decode(self.annotations.path(index), self.pixels)
            annotated = self.annotations.sizes[index]
            if image.shape[:2] != annotated:
                raise BadImage(
                    "", f"{image.shape[1]} x {image.shape[0]} pixels, annotated as {annotated[1]} x {annotated[0]}"
                )
        except BadImage as error:
            nothing = torch.empty(0, 4), torch.empty(0, dtype=torch.int64)
            return Scene(
                index, None, (0, 0), *nothing, None, (1.0, 1.0), [(self.annotations.files[index], error.reason)]
            )
        canvas, extent, placed = self.place(image, epoch, index)
        return self._scene(index, canvas, extent, placed)

    def _scene(self, index: int, canvas: Tensor, extent: tuple[int, int], placed: Placement) -> Scene:
        objects, width = self.annotations.objects[index], self.annotations.sizes[index][1]
        boxes = torch.from_numpy(objects.boxes.copy())
        if placed.flipped:
            boxes[:, 0::2] = width - boxes[:, [2, 0]]
        scale = torch.tensor([placed.scale_x, placed.scale_y])
        boxes = (boxes.view(-1, 2, 2) * scale - torch.tensor([placed.left, placed.top])).flatten(1)
        boxes[:, 0::2] = boxes[:, 0::2].clamp(0, extent[1])
        boxes[:, 1::2] = boxes[:, 1::2].clamp(0, extent[0])
        keep = torch.ones(len(boxes), dtype=torch.bool)
        if self.training:
            keep = ((boxes[:, 2:] - boxes[:, :2]) >= _LEAST).all(1) & ~torch.from_numpy(objects.crowd)
        masks = None
        if self.masks:
            chosen = [outline for outline, kept in zip(objects.outlines, keep.tolist(), strict=True) if kept]
            masks = self._draw(chosen, placed, self.annotations.sizes[index])
        labels = torch.from_numpy(objects.labels)[keep]
        return Scene(index, canvas, extent, boxes[keep], labels, masks, (placed.scale_x, placed.scale_y), [])

    def _draw(self, outlines: Sequence[Outline | None], placed: Placement, size: tuple[int, int]) -> Tensor:
        """Filled outlines on the canvas, bool [n, S, S]."""
        masks = torch.zeros(len(outlines), self.size, self.size, dtype=torch.bool)
        scale, corner = (placed.scale_x, placed.scale_y), (placed.left, placed.top)
        for mask, outline in zip(masks, outlines, strict=True):
            mask.copy_(torch.from_numpy(drawn(outline, self.size, size, scale, corner, placed.flipped)))
        return masks
