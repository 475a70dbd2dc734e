"""What holds a network to the weights that it goes on from, beside any method: its features, or the weights themselves.

Penalties (``backbones/penalties.py``), so that no method knows of them. A frozen copy of the network as it began sees
some of the same crops, whole, and the trained one is pulled towards what it says.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ssl_vit.adapt.lora import products, without_products
from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.backbone import Visible
from ssl_vit.backbones.penalties import penalise, wanted
from ssl_vit.backbones.timm_adapter import TimmBackbone


class Pull(NamedTuple):
    """How strongly features are pulled, by weights of a mean over images and, of patches, over those that are seen."""

    pooled_cosine: float = 0.0  # of one minus the cosine
    pooled_squared: float = 0.0  # of the mean squared difference of a number
    patch_cosine: float = 0.0
    patch_squared: float = 0.0
    every: int = 4  # of so many images of a pass one is compared


class Start(nn.Module):
    """A backbone as it was: never trained, without noise, and with the trained one's own weights where LoRA keeps them.

    Part of the method, so that a resumed run has it from its checkpoint.
    """

    def __init__(self, backbone: AdaptedBackbone) -> None:
        super().__init__()
        self.backbone = without_products(backbone).requires_grad_(False)
        for module in self.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
        self.train(False)

    def train(self, mode: bool = True) -> Start:
        """Stay as in evaluation, whatever the method around it is told."""
        super().train(False)
        return self


def anchor(method: nn.Module, pull: Pull, l2_sp: float) -> None:
    """From now on each pass of the trained backbone is penalised by how far its features are from the start's.

    And each pass of the method, with ``l2_sp`` > 0, by ``l2_sp`` / 2 times the squared distance of the backbone's
    weights from the start's (1802.01483).
    """
    backbone = trained_backbone(method)
    method.start = Start(backbone)
    if any(pull[:4]):
        held = _Held(pull, method.start)
        backbone.register_forward_hook(held.whole, with_kwargs=True)
        if backbone.info.drops_patches and isinstance(backbone, TimmBackbone):
            backbone.visible = partial(held.visible, backbone.visible)  # type: ignore[method-assign]  # for this one alone
    if l2_sp > 0:
        method.register_forward_pre_hook(partial(_hold_weights, backbone, method.start.backbone, l2_sp))


def trained_backbone(method: nn.Module) -> AdaptedBackbone:
    """The one backbone in a method that is trained; StopIteration where none is."""
    backbones = (module for module in method.modules() if isinstance(module, AdaptedBackbone))
    return next(each for each in backbones if any(weight.requires_grad for weight in each.model.parameters()))


class _Held:
    """Penalises passes of a backbone, whole or of the patches kept."""

    def __init__(self, pull: Pull, start: Start) -> None:
        self.pull, self.start = pull, start

    def whole(self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any], features: Any) -> None:
        """After a pass of images [B, 3, H, W], some of whose patches a mask may hide."""
        if not wanted():
            return
        images, mask = given[0], given[1] if len(given) > 1 else named.get("mask")
        some = slice(None, None, self.pull.every)
        seen = self._look(images[some])
        shown = None if mask is None else ~mask[some].flatten(1)
        self._penalise(features.pooled[some], seen.pooled, rows(features.patches[some]), rows(seen.patches), shown)

    def visible(self, see: Any, images: Tensor, kept: Tensor) -> Visible:
        """A pass of the patches kept [B, N], penalised."""
        found: Visible = see(images, kept)
        if wanted():
            some = slice(None, None, self.pull.every)
            seen = self._look(images[some])
            same = rows(seen.patches).gather(1, kept[some, :, None].expand(-1, -1, seen.patches.shape[1]))
            self._penalise(found.pooled[some], seen.pooled, found.patches[some], same, None)
        return found

    @torch.no_grad()
    def _look(self, images: Tensor) -> Any:
        return self.start.backbone(images)

    def _penalise(self, pooled: Tensor, before: Tensor, patches: Tensor, theirs: Tensor, shown: Tensor | None) -> None:
        pull = self.pull
        if pull.pooled_cosine:
            penalise("anchor_pooled_cosine", pull.pooled_cosine * cosine_distance(pooled, before).mean())
        if pull.pooled_squared:
            penalise("anchor_pooled_squared", pull.pooled_squared * squared_distance(pooled, before).mean())
        if pull.patch_cosine:
            penalise("anchor_patch_cosine", pull.patch_cosine * _mean(cosine_distance(patches, theirs), shown))
        if pull.patch_squared:
            penalise("anchor_patch_squared", pull.patch_squared * _mean(squared_distance(patches, theirs), shown))


def cosine_distance(x: Tensor, y: Tensor) -> Tensor:
    """One minus the cosine of vectors [..., D], [...].

    >>> cosine_distance(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [1.0, 0.0]]))
    tensor([0., 1.])
    """
    return 1 - F.cosine_similarity(_exact(x), _exact(y), dim=-1)


def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """The mean over the numbers of vectors [..., D] of their squared difference, [...].

    >>> squared_distance(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0]]))
    tensor([2.])
    """
    return (_exact(x) - _exact(y)).square().mean(-1)


def rows(patches: Tensor) -> Tensor:
    """[B, D, H, W] to [B, H * W, D]."""
    return patches.flatten(2).mT


def _mean(distances: Tensor, shown: Tensor | None) -> Tensor:
    """The mean of [B, N], or of those where ``shown`` [B, N] is true."""
    if shown is None:
        return distances.mean()
    counted = shown.to(distances)
    return (distances * counted).sum() / counted.sum().clamp(min=1)


def _exact(x: Tensor) -> Tensor:
    """In at least float32."""
    return x if x.dtype == torch.float64 else x.float()


def _hold_weights(
    backbone: AdaptedBackbone, start: AdaptedBackbone, weight: float, method: nn.Module, given: tuple[Any, ...]
) -> None:
    """Before a pass of the method."""
    if not wanted():
        return
    added = [(layer.lora_B @ layer.lora_A).square().sum() for _, layer in products(backbone.model)]
    if added:
        squares = torch.stack(added).sum()
    else:
        pairs = zip(backbone.model.parameters(), start.model.parameters(), strict=True)
        trained, began = zip(*((ours, theirs) for ours, theirs in pairs if ours.requires_grad), strict=True)
        squares = _SquaredDistance.apply(list(began), *trained)
    penalise("l2_sp", weight / 2 * squares)


class _SquaredDistance(torch.autograd.Function):
    """The squared distance of many tensors from others, without a copy of them for the way back."""

    @staticmethod
    def forward(ctx: Any, began: list[Tensor], *trained: Tensor) -> Tensor:
        """Of each the same shape, to []."""
        ctx.began, ctx.trained = began, trained
        norms = torch._foreach_norm(torch._foreach_sub(list(trained), began))
        return torch.stack(norms).square().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Twice the difference."""
        found = torch._foreach_sub(ctx.trained, ctx.began)
        torch._foreach_mul_(found, 2 * gradient)
        return None, *found
