"""What every adapter between a model and the backbone contract has in common: a pass, a pyramid, masks on pixels."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ssl_vit.backbones.anatomy import Anatomy
from ssl_vit.backbones.backbone import Backbone, Features
from ssl_vit.backbones.layers import Size


class AdaptedBackbone(Backbone):
    """A model behind the contract.

    ``model`` is the author's own, whose ``state_dict()`` is what is exported. With `masked` there is a learned
    ``mask_token``, a colour [3] that hides pixels. (The mean colour, 0 everywhere, makes layer norms divide by nothing:
    gradients overflow.)
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, masked: bool = False) -> None:
        super().__init__()
        self.model: Any = model  # what models have beside forward is in no type
        self.info = anatomy.info
        self.layout = anatomy.layout
        self.model_args: dict[str, Any] = dict(anatomy.weight_args)
        """The arguments with which the model is built again for the same weights."""
        self.mask_token: nn.Parameter | None = nn.Parameter(torch.randn(3)) if masked else None

    def architecture(self) -> dict[str, Any]:
        """What config.json says of the model, so that it can be built again: its name, arguments, size and colours."""
        raise NotImplementedError

    def fingerprint(self) -> list[float]:
        """Some numbers that it gives for one image of noise, by which it is known again."""
        noise = torch.randn(1, 3, *self.info.size, generator=torch.Generator().manual_seed(0))
        frozen = copy.deepcopy(self).cpu().float().eval()
        with torch.inference_mode():
            return [float(value) for value in frozen(noise).pooled[0, :16]]

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Features:
        """images: [B, 3, H, W] normalised; mask: bool [B, h, w], True = hidden, of the patch grid.

        Hidden are the pixels that lie under the mask.

        Errors: ValueError for a mask where there is no mask token (``masked=True`` makes one).
        """
        return self.layout.read(self.model, images if mask is None else self.hide_pixels(images, mask))

    def hide_pixels(self, images: Tensor, mask: Tensor) -> Tensor:
        """Images [B, 3, H, W] with the mask token's colour under a mask [B, h, w]."""
        if self.mask_token is None:
            raise ValueError(f"{self.info.name}: no mask token; create the backbone with masked=True")
        hidden = spread(mask, (images.shape[-2], images.shape[-1]), self.layout.stride)
        return torch.where(hidden[:, None], self.mask_token[:, None, None].to(images.dtype), images)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> the map of every stage, [B, C_i, H/s_i, W/s_i], finest first."""
        return self.layout.pyramid(self.model, images)


def spread(mask: Tensor, size: Size, stride: int) -> Tensor:
    """A mask [B, h, w] on the finer grid `size` (H, W), of which a cell of the mask is `stride` places wide.

    >>> spread(torch.tensor([[[True, False, True]]]), (1, 5), 2).int()
    tensor([[[1, 1, 0, 0, 1]]], dtype=torch.int32)
    """
    rows, columns = (_cells(side, cells, stride, mask) for side, cells in zip(size, mask.shape[1:], strict=True))
    return mask[:, rows[:, None], columns]


def _cells(side: int, cells: int, stride: int, like: Tensor) -> Tensor:
    """Which of a mask's `cells` each of `side` places lies in; the last one is cut off, or takes what is over."""
    places = torch.arange(side, device=like.device)
    if cells in (side // stride, -(-side // stride)):
        return (places // stride).clamp(max=cells - 1)
    return places * cells // side  # a map that loses cells at its border, or isn't as fine as timm says
