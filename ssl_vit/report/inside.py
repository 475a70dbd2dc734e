"""What a network makes of a sample of images: neighbours, a map, patches as colours, where its heads look."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.backbone import Backbone
from ssl_vit.data.augment import normalise
from ssl_vit.eval.features import evaluating
from ssl_vit.report.sample import QUERIES, Sample, spread

NEIGHBOURS = 6  # of a query
HEADS = 6  # that are shown
_TOGETHER = 32  # images in a pass
_DARK, _BRIGHT = 2, 98  # percentiles of a component that become black and full colour

Cells = NDArray[np.uint8]
"""[n, h, w, 3]: a colour for each patch of n images."""


class Seen:
    """What was seen at one time: numbers for the page, and colours of patches by what they show."""

    def __init__(self, numbers: Mapping[str, Any], cells: Mapping[str, Cells]) -> None:
        self.numbers, self.cells = dict(numbers), dict(cells)


@torch.no_grad()
def look(
    backbone: Backbone,
    sample: Sample,
    colours: Sequence[Sequence[float]],
    autocast: Callable[[], AbstractContextManager[Any]],
    turn: NDArray[np.float64] | None = None,
) -> Seen:
    """See what a network makes of a sample; it is left as it was, and its buffers with it.

    colours: mean and deviation of images in [0, 1]; turn: a map before this one, whose sides it keeps where it can.
    """
    device = next(backbone.parameters()).device
    with evaluating(backbone):
        with autocast():
            parts = [
                backbone(normalise(part.to(device), *colours)).pooled.float().cpu()
                for part in torch.split(sample.images, _TOGETHER)
            ]
        shown = normalise(sample.images[sample.shown].to(device), *colours)
        patches, heads = attention(backbone, shown)
    features = torch.cat(parts).double()
    if not features.isfinite().all():
        raise ValueError("the features are not finite")
    unit = F.normalize(features - features.mean(0), dim=1)
    places, share = plane(unit, turn)
    found = {"map": places.round(4).tolist(), "share": share, "neighbours": neighbours(F.normalize(features, dim=1))}
    cells = {"patches": as_colours(patches)}
    if heads is not None:
        whose = "class token" if backbone_prefix(backbone) else "patches"
        found |= {"heads": heads.shape[1], "whose": whose}
        cells |= {f"head-{head}": as_heat(heads[:, head]) for head in range(min(HEADS, heads.shape[1]))}
    else:
        cells["energy"] = as_heat(patches.norm(dim=1))
    return Seen(found, cells)


def neighbours(unit: Tensor) -> list[tuple[int, list[tuple[int, float]]]]:
    """For each of a few rows of features [N, D] of length 1 the nearest others, with their cosine."""
    queries = spread(len(unit), QUERIES)
    near = unit[queries] @ unit.T
    near[torch.arange(len(queries)), queries] = -torch.inf
    values, rows = near.topk(min(NEIGHBOURS, len(unit) - 1), dim=1)
    pairs = zip(queries, rows.tolist(), values.tolist(), strict=True)
    return [(query, [(row, round(value, 3)) for row, value in zip(*found, strict=True)]) for query, *found in pairs]


def plane(unit: Tensor, before: NDArray[np.float64] | None = None) -> tuple[NDArray[np.float64], float]:
    """The plane [N, 2] in which rows [N, D] differ most, and the share of their variance that lies in it.

    before: another such plane, with which the signs agree.
    """
    left, values, _ = torch.linalg.svd(unit - unit.mean(0), full_matrices=False)
    places = np.zeros((len(unit), 2))
    width = min(2, len(values))
    places[:, :width] = (left[:, :width] * values[:width]).numpy()
    share = float(values[:2].square().sum() / values.square().sum().clamp_min(1e-30))
    for axis in range(2):
        column = places[:, axis]
        other = before[:, axis] if before is not None and len(before) == len(column) else column**3
        places[:, axis] = column if float(column @ other) >= 0 else -column
    return places, share


def attention(backbone: Backbone, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """The patches [n, D, h, w] of the last layer, and where each head of the last attention looks, [n, heads, h, w].

    The class token's attention; without one, the mean over all patches. None where no attention is over all patches.
    """
    watched = _Watched()
    with watched:
        patches = backbone(images).patches
    grid = patches.shape[-2] * patches.shape[-1]
    prefix = backbone_prefix(backbone)
    for query, key, options in reversed(watched.calls):
        if query.ndim != 4 or len(query) != len(images) or key.shape[2] != prefix + grid:
            continue
        logits = query.float() @ key.float().mT * (options.get("scale") or query.shape[-1] ** -0.5)
        mask = options.get("attn_mask")
        if isinstance(mask, Tensor):
            logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.float()
        weights = logits.softmax(-1)
        first = weights[:, :, 0] if prefix or query.shape[2] == 1 else weights.mean(2)
        return patches.float().cpu(), first[..., prefix:].reshape(*first.shape[:2], *patches.shape[-2:]).cpu()
    return patches.float().cpu(), None


class _Watched(TorchFunctionMode):
    """Inside, each call of torch's attention is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, dict[str, Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and len(args) >= 2:
            options = dict(zip(("attn_mask", "dropout_p", "is_causal"), args[3:], strict=False)) | (kwargs or {})
            self.calls.append((args[0], args[1], options))
        return func(*args, **(kwargs or {}))


def backbone_prefix(backbone: Backbone) -> int:
    """How many tokens stand before the patches."""
    return backbone.layout.prefix if isinstance(backbone, AdaptedBackbone) else 0


def as_colours(patches: Tensor) -> Cells:
    """Patches [n, D, h, w] as colours: their three main components over all n images are red, green and blue."""
    rows = patches.double().movedim(1, -1).flatten(0, 2)
    rows = rows - rows.mean(0)
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    found = np.zeros((len(rows), 3))
    width = min(3, len(values))
    signs = torch.where(right[:width].pow(3).sum(1) < 0, -1.0, 1.0)
    found[:, :width] = (left[:, :width] * values[:width] * signs).numpy()
    low, high = np.percentile(found, (_DARK, _BRIGHT), axis=0)
    unit = np.clip((found - low) / np.maximum(high - low, 1e-12), 0, 1)
    colours: Cells = (255 * unit).round().astype(np.uint8)
    return colours.reshape(len(patches), *patches.shape[-2:], 3)


def as_heat(values: Tensor) -> Cells:
    """Values [n, h, w] as colours, from each image's least to its largest."""
    flat = values.double().flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    unit = ((flat - low) / (high - low).clamp_min(1e-30)).view_as(values).numpy()
    found: Cells = (255 * mpl.colormaps["magma"](unit)[..., :3]).round().astype(np.uint8)
    return found
