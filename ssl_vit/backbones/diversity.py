"""Patch diversification: losses that keep a network's patches apart (2104.12753), and how alike they are at each depth.

In the words of the paper: a first layer tells its patches apart, and deep ones forget to.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.backbone import Features
from ssl_vit.backbones.penalties import penalise, penalise_features, wanted


def patch_cosine(patches: Tensor) -> Tensor:
    """The mean absolute cosine [] of two patches of an image, of patches [B, N, D]; 0 where there is one alone.

    >>> float(patch_cosine(torch.tensor([[[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0]]])))  # 1 of 3 pairs is alike
    0.333...
    """
    images, number, _ = patches.shape
    if number < 2:
        return 0 * patches.sum()
    units = F.normalize(_exact(patches), dim=-1)
    alike: Tensor = (units @ units.mT).abs()
    return (alike.sum() - alike.diagonal(dim1=1, dim2=2).sum()) / (images * number * (number - 1))


def patch_contrast(first: Tensor, last: Tensor) -> Tensor:
    """How badly each patch of the last layer is told from the mean of the others by its own of the first one, [].

    first, last: [B, N, D]. The mean over patches i of -log(exp(f_i l_i) / (exp(f_i l_i) + exp(f_i m_i))), m_i the mean
    of the last layer's other patches; no gradient comes to the first layer. Vectors have length 1, so that it does not
    depend on a network's scale.
    """
    number = last.shape[1]
    if number < 2:
        return 0 * last.sum()
    first, last = F.normalize(_exact(first.detach()), dim=-1), F.normalize(_exact(last), dim=-1)
    others = (last.sum(1, keepdim=True) - last) / (number - 1)
    return F.softplus((first * others).sum(-1) - (first * last).sum(-1)).mean()


def patch_mixing(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy [] of each patch's logits [B, N, C] with the label of the image that it came from, [B, N]."""
    return F.cross_entropy(_exact(logits).flatten(0, 1), labels.flatten())


def diversify(method: nn.Module, weight: float) -> None:
    """From now on each pass of a trained backbone is penalised by how alike the patches of its last layer are.

    With blocks of one width, as a plain transformer's, by `patch_contrast` with the first block's too.
    """
    for backbone in [module for module in method.modules() if isinstance(module, AdaptedBackbone)]:
        if any(p.requires_grad for p in backbone.parameters()):
            blocks = blocks_of(backbone)
            if blocks is None:
                penalise_features(backbone, "patch_cosine", partial(_of_features, weight))
            else:
                watch = _Watch(weight, backbone.layout.prefix)
                blocks[0].register_forward_hook(watch.first)
                blocks[-1].register_forward_hook(watch.last)


def blocks_of(backbone: AdaptedBackbone) -> list[Any] | None:
    """The blocks of a network whose tokens have one width and number throughout; None for any other one."""
    model = backbone.model
    blocks = list(getattr(model, "blocks", ()))
    levels = getattr(model, "feature_info", ())
    same = len({(level["num_chs"], level["reduction"]) for level in levels}) == 1
    return blocks if len(blocks) > 1 and same and len(levels) == len(blocks) else None


class _Watch:
    """Keeps the first block's tokens of the pass under way until the last block has given its own."""

    def __init__(self, weight: float, prefix: int) -> None:
        self.weight, self.prefix = weight, prefix
        self.kept: Tensor | None = None

    def first(self, _: nn.Module, __: Any, tokens: Any) -> None:
        self.kept = self._patches(tokens).detach() if wanted() and isinstance(tokens, Tensor) else None

    def last(self, _: nn.Module, __: Any, tokens: Any) -> None:
        kept, self.kept = self.kept, None
        if kept is None or not isinstance(tokens, Tensor):
            return
        patches = self._patches(tokens)
        penalise("patch_cosine", self.weight * patch_cosine(patches))
        if patches.shape == kept.shape:
            penalise("patch_contrast", self.weight * patch_contrast(kept, patches))

    def _patches(self, tokens: Tensor) -> Tensor:
        return tokens.flatten(1, 2) if tokens.ndim == 4 else tokens[:, self.prefix :]


def _of_features(weight: float, _: Tensor, features: Features) -> Tensor:
    return weight * patch_cosine(features.patches.flatten(2).mT)


def _exact(x: Tensor) -> Tensor:
    """In at least float32."""
    return x if x.dtype == torch.float64 else x.float()
