"""Dynamic sparse training (SViTE, 2106.04533) beside any method: many weights are 0, and which ones changes.

Each layer keeps the number of weights that it begins with. From time to time those of the smallest size are dropped and
as many are grown where the gradient is largest (RigL, 1911.11134), a share that falls along a cosine. By units, whole
heads and hidden units of a plain ViT come and go, which ``ssl-vit compress shrink`` cuts off in the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.errors import UserError
from ssl_vit.methods.method import Method, Progress
from ssl_vit.schedules import cosine

SHARE = 0.5  # of a layer's weights that the first change replaces (SViTE's), then less along a cosine
CHANGES = 50  # a run, as SViTE's on DeiT-Small


class Layer(NamedTuple):
    """A layer of which some weights are 0."""

    name: str  # of its weight, in the backbone
    weight: nn.Parameter  # [out, in, …]
    width: int  # columns that come and go together; 0: each weight by itself
    taylor: bool = False  # whether what to drop is chosen by what dropping it would cost, not by its size


def erk(shapes: Sequence[tuple[int, ...]], density: float) -> list[int]:
    """How many weights of each layer are not 0, exactly the share ``density`` of all: Erdos-Renyi-Kernel.

    A layer's density is in proportion to the sum of its shape over its product, and at most 1, where those of the
    others make up for it.

    >>> erk([(4, 4), (8, 8)], 0.5)
    [13, 27]
    """
    sizes = [math.prod(shape) for shape in shapes]
    wanted, full = round(density * sum(sizes)), set[int]()
    while True:
        free = [i for i in range(len(sizes)) if i not in full]
        left = wanted - sum(sizes[i] for i in full)
        scale = left / sum(sum(shapes[i]) for i in free) if free else 0.0
        over = {i for i in free if scale * sum(shapes[i]) > sizes[i]}
        if not over:
            break
        full |= over
    exact = [float(sizes[i]) if i in full else scale * sum(shapes[i]) for i in range(len(sizes))]
    return _whole(exact, wanted)


def _whole(exact: Sequence[float], total: int) -> list[int]:
    """Whole numbers next to these, whose sum is given: the largest remainders are rounded up."""
    found = [math.floor(each + 1e-9) for each in exact]
    order = sorted(range(len(exact)), key=lambda i: found[i] - exact[i])
    for i in order[: total - sum(found)]:
        found[i] += 1
    return found


def even(groups: Sequence[int], density: float) -> list[int]:
    """How many units each layer keeps, one at least, so that all together keep that share as nearly as can be.

    >>> even([3, 3, 3, 3], 0.5)
    [1, 2, 1, 2]
    """
    found, due, before = [], 0.0, 0
    for count in groups:
        due += density * count
        found.append(max(1, math.floor(due + 1e-9) - before))
        before = math.floor(due + 1e-9)
    return found


class Masks(nn.Module):
    """Which weights of a method's backbone are not 0; part of the method, so that checkpoints keep it.

    method: of which the trained backbone becomes sparse, and its teacher with it. sparsity: share of 0. units: whole
    heads and hidden units.
    """

    def __init__(self, method: Method, sparsity: float, units: bool = False) -> None:
        super().__init__()
        trained, copies = _backbones(method)
        self.layers = _units(trained) if units else _weights(trained)
        self._copies = [dict(each.named_parameters()) for each in copies]
        for index, (layer, count) in enumerate(zip(self.layers, self._counts(1 - sparsity, units), strict=True)):
            mask = _largest(_size(layer, layer.weight.detach()), count)
            self.register_buffer(f"mask{index}", _spread(layer, mask))
        self._next: list[Tensor] | None = None  # of the step that is under way, where it changes them
        self._apply_all()

    def _counts(self, density: float, units: bool) -> list[int]:
        if not units:
            return erk([tuple(layer.weight.shape) for layer in self.layers], density)
        kinds = [[layer for layer in self.layers if layer.taylor == taylor] for taylor in (True, False)]
        found: dict[str, int] = {}
        for kind in kinds:
            counts = even([layer.weight.shape[1] // layer.width for layer in kind], density)
            found |= dict(zip((layer.name for layer in kind), counts, strict=True))
        return [found[layer.name] for layer in self.layers]

    def masks(self) -> list[Tensor]:
        """One of each layer, bool, of the weight's shape."""
        return [self.get_buffer(f"mask{index}") for index in range(len(self.layers))]

    def __str__(self) -> str:
        masks = self.masks()
        shares, count = [float(mask.float().mean()) for mask in masks], sum(mask.numel() for mask in masks)
        return (
            f"sparse: {self.density():.4g} of {count / 1e6:.1f} million weights are not 0, {min(shares):.2f} to "
            f"{max(shares):.2f} a layer; which ones changes {CHANGES} times"
        )

    def density(self) -> float:
        """The share of weights that are not masked, of those of all layers."""
        masks = self.masks()
        return sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    @torch.no_grad()
    def before_step(self, progress: Progress) -> None:
        """Choose what is dropped and grown, where it is time, and leave no gradient to what is 0."""
        self._next, due = None, max(1, progress.total // CHANGES)
        gradients = [layer.weight.grad for layer in self.layers]
        if progress.step and progress.step % due == 0:
            share = cosine(SHARE, 0.0, progress.step, progress.total)
            rows = zip(self.layers, self.masks(), gradients, strict=True)
            self._next = [mask if grad is None else _changed(layer, mask, grad, share) for layer, mask, grad in rows]
        for mask, gradient in zip(self.masks(), gradients, strict=True):
            if gradient is not None:
                gradient.mul_(mask)

    @torch.no_grad()
    def after_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """What is 0 stays 0; what was chosen is dropped, and what is grown begins at 0, without a past."""
        for layer, mask, new in zip(self.layers, self.masks(), self._next or self.masks(), strict=True):
            layer.weight.mul_(mask & new)
            if new is not mask:
                for state in optimizer.state.get(layer.weight, {}).values():
                    if isinstance(state, Tensor) and state.shape == mask.shape:
                        state.mul_(mask & new)
                mask.copy_(new)
        self._next = None

    def after_step(self) -> None:
        """Teachers have no weight where their student has none."""
        self._apply_all()

    @torch.no_grad()
    def _apply_all(self) -> None:
        for layer, mask in zip(self.layers, self.masks(), strict=True):
            layer.weight.mul_(mask)
            for copy in self._copies:
                copy[layer.name].mul_(mask)


def sparsify(method: Method, sparsity: float, units: bool) -> None:
    """Make a method's trained backbone, and its teacher, sparse from here on.

    Raises:
        UserError: it trains no backbone, or units are asked for of one that is no plain ViT.
    """
    method.add_module("sparse", Masks(method, sparsity, units))


def masks_of(method: nn.Module) -> Masks | None:
    """The masks of a method; None of one that is not sparse."""
    return next((each for each in method.children() if isinstance(each, Masks)), None)


def _backbones(method: Method) -> tuple[AdaptedBackbone, list[AdaptedBackbone]]:
    """The one that is trained, and others of the same weights that are not: teachers."""
    found = [module for module in method.modules() if isinstance(module, AdaptedBackbone)]
    trained = [each for each in found if any(p.requires_grad for p in each.parameters())]
    if len(trained) != 1:
        raise UserError("train.sparsity: the method does not train its backbone; set train.sparsity=0")
    shapes = {name: p.shape for name, p in trained[0].model.named_parameters()}
    return trained[0], [
        each
        for each in found
        if each is not trained[0] and {name: p.shape for name, p in each.model.named_parameters()} == shapes
    ]


def _weights(backbone: AdaptedBackbone) -> list[Layer]:
    """The weights of linear layers and convolutions but for the first, which sees the pixels."""
    found = list[Layer]()
    for place, module in backbone.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and module.weight.requires_grad:
            weight = module.get_parameter("weight")
            seen = weight.shape[1] == 3 and isinstance(module, nn.Conv2d)
            known = any(weight is layer.weight for layer in found)
            if not seen and not known:
                found.append(Layer(f"{place}.weight", weight, 0))
    if not found:
        raise UserError(
            f"train.sparsity: {backbone.info.name} has no linear layer or convolution; set train.sparsity=0"
        )
    return found


def _units(backbone: AdaptedBackbone) -> list[Layer]:
    """What reads heads and hidden units of a plain ViT; without it they are nothing."""
    found = list[Layer]()
    for depth, block in enumerate(_blocks(backbone)):
        at, columns = f"model.blocks.{depth}", block.attn.proj.weight.shape[1]
        found.append(Layer(f"{at}.attn.proj.weight", block.attn.proj.weight, columns // block.attn.num_heads, True))
        found.append(Layer(f"{at}.mlp.fc2.weight", block.mlp.fc2.weight, 1))
    return found


def _blocks(backbone: AdaptedBackbone) -> Iterator[Any]:
    from timm.models.vision_transformer import Block, VisionTransformer

    model: Any = backbone.model
    if type(model) is not VisionTransformer or any(type(block) is not Block for block in model.blocks):
        raise UserError(
            f"train.sparse_units: {backbone.info.name} is no plain ViT, so that it has no heads and hidden units to "
            "cut off; set train.sparse_units=false, or choose a vit or deit"
        )
    yield from model.blocks


def _groups(layer: Layer, values: Tensor) -> Tensor:
    """Values [out, in] of a layer summed over units, [units]; of single weights, all in a row."""
    if not layer.width:
        return values.flatten()
    return values.reshape(len(values), -1, layer.width).sum((0, 2))


def _size(layer: Layer, values: Tensor) -> Tensor:
    return _groups(layer, values.abs())


def _spread(layer: Layer, chosen: Tensor) -> Tensor:
    """A mask of the weight's shape from one of its units, or of its weights in a row."""
    if not layer.width:
        return chosen.view(layer.weight.shape)
    return chosen.repeat_interleave(layer.width).expand(len(layer.weight), -1).contiguous()


def _largest(scores: Tensor, count: int) -> Tensor:
    """A mask of the largest ``count``; of equals, the first."""
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    mask[scores.argsort(descending=True, stable=True)[:count]] = True
    return mask


def _changed(layer: Layer, mask: Tensor, gradient: Tensor, share: float) -> Tensor:
    """The mask after dropping the least of what is there and growing where the gradient is largest."""
    now = _groups(layer, mask) > 0
    count = int(now.sum())
    change = min(math.floor(share * count), len(now) - count)
    gain = _size(layer, gradient)
    worth = _groups(layer, layer.weight * gradient).abs() if layer.taylor else _size(layer, layer.weight)
    stays = _largest(worth.masked_fill(~now, -1.0), count - change)
    grown = _largest(gain.masked_fill(stays, -1.0), change)
    return _spread(layer, stays | grown)
