"""All set-predicting detectors keep this contract, and share these small parts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert

from ssl_vit.backbones.backbone import Backbone


class Predictions(NamedTuple):
    """What a detector says of B images with Q queries; boxes are (centre x, centre y, width, height) in [0, 1]."""

    logits: Tensor  # [B, Q, C], or [B, Q, C + 1] with "nothing" last where the classes share a softmax
    boxes: Tensor  # [B, Q, 4]
    earlier: tuple[tuple[Tensor, Tensor], ...] = ()  # (logits, boxes) of the decoder layers before the last
    embeddings: Tensor | None = None  # [B, Q, E] where the detector was built to embed its objects


class Detections(NamedTuple):
    """Detections are the boxes of one image, best first."""

    boxes: Tensor  # [N, 4] pixels, (left, top, right, bottom)
    scores: Tensor  # [N]
    labels: Tensor  # int64 [N]
    masks: Tensor | None = None  # bool [N, H, W] where the detector finds them
    looks: Tensor | None = None  # [N, P, 3] where it looked, (x, y) in pixels, and how much that counted


class Detector(nn.Module):
    """Its queries are matched with objects one to one, so that nothing has to be suppressed after it."""

    name: ClassVar[str]
    settings: dict[str, Any]  # with which it was built, beside the backbone and the number of classes
    focal: bool  # classes are told apart by sigmoids (Deformable DETR), or by a softmax with "nothing" as one (DETR)
    num_classes: int

    def forward(self, images: Tensor, padding: Tensor | None = None) -> Predictions:
        """Predict classes and boxes, for each query.

        images: [B, 3, H, W] normalised; padding: bool [B, H, W], True beside the image.
        """
        raise NotImplementedError

    def forget_classes(self, num_classes: int) -> None:
        """Make a new class head, with random weights, for other classes; everything else is kept."""
        raise NotImplementedError


class Mlp(nn.Module):
    """Linear layers with ReLU between them, under the official names ``layers.0``, ``layers.1``, …

    >>> Mlp([8, 16, 4])(torch.zeros(2, 8)).shape
    torch.Size([2, 4])
    """

    def __init__(self, dims: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., dims[0]] to [..., dims[-1]]."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out


class FrozenNorms(nn.Module):
    """The backbone's batch norm keeps its statistics and its scale in it: detection batches are too small."""

    backbone: Backbone
    frozen = True

    def freeze_norms(self, frozen: bool = True) -> None:
        """Freeze the norms, once the backbone is in place; False for one with random weights, which must have norms."""
        self.frozen = frozen
        for norm in self._norms():
            norm.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> FrozenNorms:
        """Set the mode of all but the frozen batch norms, which stay in evaluation mode."""
        super().train(mode)
        if self.frozen:
            for norm in self._norms():
                norm.eval()
        return self

    def _norms(self) -> list[nn.Module]:
        return [m for m in self.backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def sigmoid_shares(raw: Tensor) -> Tensor:
    """Turn raw outputs into shares of the image's sides, 0 to 1; in bfloat16 they would come in steps of 0.004."""
    return raw.to(torch.promote_types(raw.dtype, torch.float32)).sigmoid()


def shrink(padding: Tensor | None, like: Tensor) -> Tensor:
    """Resize padding [B, H, W] to the grid of a map [B, C, h, w]: bool [B, h, w], all False without padding."""
    if padding is None:
        return like.new_zeros(like.shape[0], *like.shape[-2:], dtype=torch.bool)
    return F.interpolate(padding[:, None].float(), like.shape[-2:])[:, 0] > 0


@torch.no_grad()
def best(
    predictions: Predictions, sizes: Tensor, *, focal: bool, count: int = 100, looks: Tensor | None = None
) -> list[Detections]:
    """Choose at most `count` boxes an image, as the official code does; sizes: [B, 2] (height, width) in pixels.

    With a softmax each query gives its likeliest class; with sigmoids the best (query, class) pairs are taken, so that
    a query may give several. looks: [B, Q, P, 3] of the queries, passed on to their boxes.
    """
    logits = predictions.logits.float()
    if focal:
        scores, index = logits.sigmoid().flatten(1).topk(min(count, logits[0].numel()))
        query, labels = index // logits.shape[-1], index % logits.shape[-1]
    else:
        likeliest, classes = logits.softmax(-1)[..., :-1].max(-1)
        scores, query = likeliest.topk(min(count, likeliest.shape[1]))
        labels = classes.gather(1, query)
    boxes = box_convert(predictions.boxes.float().gather(1, query[..., None].expand(-1, -1, 4)), "cxcywh", "xyxy")
    height, width = sizes.to(boxes).unbind(1)
    boxes = boxes * torch.stack([width, height, width, height], 1)[:, None]
    looked = [None] * len(boxes) if looks is None else [own[chosen] for own, chosen in zip(looks, query, strict=True)]
    return [Detections(*image[:3], looks=image[3]) for image in zip(boxes, scores, labels, looked, strict=True)]
