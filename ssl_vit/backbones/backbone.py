"""The backbone contract is a vision model seen the way self-supervision needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

Colour = tuple[float, float, float]
"""Red, green and blue, of images in [0, 1]."""


class Features(NamedTuple):
    """One forward pass gives these: D channels, on a grid of H x W patches."""

    pooled: Tensor  # [B, D]        one vector an image
    patches: Tensor  # [B, D, H, W]  the last feature map or token grid


class Visible(NamedTuple):
    """A plain transformer gives these when it saw N of an image's patches."""

    pooled: Tensor  # [B, D]
    prefix: Tensor  # [B, P, D]  class and register tokens; P may be 0
    patches: Tensor  # [B, N, D]


class Stage(NamedTuple):
    """A stage is one level of the pyramid."""

    channels: int
    stride: int  # pixels of the image per cell of the map


@dataclass(frozen=True)
class BackboneInfo:
    """The info says what a backbone is and what it can do."""

    name: str  # timm's name, without weights tag
    family: str  # timm's module: "vision_transformer", "resnet", …
    kind: str  # "transformer" | "convolutional" | "mlp" | "hybrid"
    dim: int  # D of pooled
    patch_dim: int  # D of patches (equal to dim but where a family's head widens)
    stages: tuple[Stage, ...]
    patch: int | None  # patch size in pixels where there is a patch embedding that masks can act on, else None
    size: tuple[int, int]  # the (height, width) it was built for, pixels
    grid: tuple[int, int]  # rows and columns of patches of such an image: what a mask must have
    any_size: bool  # takes images of other sizes than `size`
    multiple: int  # with any_size: height and width must be multiples of this, pixels
    mean: Colour
    std: Colour
    parameters: int
    smallest: int = 1  # with any_size: the smallest height and width that pass, pixels
    drops_paths: bool = True  # whether it has stochastic depth
    drops_patches: bool = False  # whether it can leave patches out instead of hiding them: plain transformers


class Backbone(nn.Module):
    """A backbone is a vision model that gives pooled features, patches and a pyramid.

    ``info`` says what the model can do; a method that needs more refuses it before any data is read.
    """

    info: BackboneInfo

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Features:
        """Compute pooled features and patches.

        images: [B, 3, H, W] normalised; mask: bool [B, H/s, W/s] of the patch grid, True = hidden.
        """
        raise NotImplementedError

    def visible(self, images: Tensor, kept: Tensor) -> Visible:
        """Compute the features of the patches that are kept, and never the others; where ``info.drops_patches``.

        images: [B, 3, H, W]; kept: int64 [B, N], numbers of patches, counted row by row.
        """
        raise NotImplementedError

    def place_patches(self, positions: Tensor, fixed: bool) -> None:
        """Begin with these positions of the patches, [H * W, D], where it has a table of them; fixed: never train them.

        Other tokens begin without; a backbone that knows positions in another way stays as it is.
        """
        raise NotImplementedError

    def look_at_neighbours(self) -> None:
        """Begin with heads that each look one patch further, in a direction of its own (after ConViT, 2103.10697).

        In blocks that have a table of biases for the offsets in a square window, as Swin's.
        """
        raise NotImplementedError

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Return the map of every stage, [B, C_i, H/s_i, W/s_i], finest first, as a detector wants them."""
        raise NotImplementedError
