"""A supernet: the largest member of a space, of which a step trains one at random, by whatever method.

Each step draws a member by its number alone, and every pass of it that is trained goes through that member by itself,
with its part of the weights: the code of a network that stands alone. What is not trained, a teacher or a score, sees
the largest. Vectors of a narrower member are filled up with zeros, so that heads share weights as layers do.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.anatomy import Anatomy, build_model
from ssl_vit.backbones.backbone import Features
from ssl_vit.backbones.families import autoformer
from ssl_vit.backbones.registry import create_backbone
from ssl_vit.backbones.spaces import Genes, Space
from ssl_vit.backbones.timm_adapter import TimmBackbone
from ssl_vit.errors import UserError

_BLOCK = re.compile(r"^blocks\.(\d+)\.(.*)$")


def member(space: Space, genes: Genes, like: AdaptedBackbone, drop_path: float = 0.0) -> AdaptedBackbone:
    """A member by itself, on torch's default device; like: the supernet, whose other arguments and info it has."""
    widths = space.args(space.largest).keys()
    args = {key: value for key, value in like.model_args.items() if key not in (*widths, "depth")}
    own = args | {"img_size": like.info.size} | space.args(genes)
    model = build_model(space.backbone, own | {"drop_path_rate": drop_path})
    anatomy = Anatomy(like.info, like.layout, tuple(own.items()), ())
    return TimmBackbone(model, anatomy, like.mask_token is not None)


def part(space: Space, genes: Genes, name: str, weight: Tensor) -> Tensor | None:
    """A member's part of a weight or a statistic of the supernet; None of what it has not.

    name: in the backbone, as "model.blocks.0.attn.qkv.weight".
    """
    width, name = int(genes[1]), name.removeprefix("model.")
    block = _BLOCK.match(name)
    if block is None:
        if name in ("cls_token", "pos_embed"):
            return weight[..., :width]
        return weight[:width]  # patch_embed, norm, mask_token
    depth, columns = int(block[1]), space.columns(genes)
    if depth >= int(genes[0]):
        return None
    chosen = {key: column[depth] for key, column in columns.items()}
    hidden = int(width * chosen["ratio"])
    mlp = {"mlp.fc1.weight": (hidden, width), "mlp.fc1.bias": (hidden,), "mlp.fc2.weight": (width, hidden)}
    if block[2] in mlp:
        return weight[tuple(slice(size) for size in mlp[block[2]])]
    if "heads" in chosen:
        return _of_autoformer(block[2], weight, width, int(chosen["heads"]) * autoformer.HEAD_DIM)
    return _of_glit(block[2], weight, width, chosen)


def _of_autoformer(layer: str, weight: Tensor, width: int, inner: int) -> Tensor:
    """A layer beside the MLP, with as many heads and channels as there are."""
    if "_distances." in layer:
        return weight
    if layer == "attn.qkv.weight":
        return _rows(weight, 3, inner)[:, :width]
    if layer == "attn.qkv.bias":
        return _rows(weight, 3, inner)
    return weight[:width, :inner] if layer == "attn.proj.weight" else weight[:width]


def _rows(weight: Tensor, groups: int, each: int) -> Tensor:
    """The first so many rows of each of several groups of rows."""
    return weight.reshape(groups, -1, *weight.shape[1:])[:, :each].flatten(0, 1)


def _of_glit(layer: str, weight: Tensor, width: int, chosen: dict[str, float]) -> Tensor:
    """A layer beside the MLP: attention's heads are narrower, the convolution has fewer channels and is shorter."""
    head, heads = width // 3, int(chosen["attention"])
    each, local = int(head * chosen["wider"]), width - heads * head
    inner, kernel = int(local * chosen["inner"]), int(chosen["kernel"])
    if layer in ("attn.attention.qkv.weight", "attn.attention.qkv.bias"):
        return _rows(weight, 3 * heads, each)
    if layer == "attn.attention.proj.weight":
        return _rows(weight.T, heads, each).T
    if layer.startswith("attn.convolution.expand."):
        return _rows(weight, 2, inner)
    if layer == "attn.convolution.depthwise.weight":
        start = (weight.shape[-1] - kernel) // 2
        return weight[:inner, :, start : start + kernel]
    if layer == "attn.convolution.project.weight":
        return weight[:, :inner]
    if layer.startswith(("attn.convolution.depthwise.", "attn.convolution.norm.")):
        return weight if weight.ndim == 0 else weight[:inner]
    return weight


def parts(space: Space, genes: Genes, supernet: nn.Module) -> dict[str, Tensor]:
    """All of a member's weights and statistics, of the supernet's; weights are copies that gradients flow through."""
    found = {name: part(space, genes, name, weight) for name, weight in supernet.named_parameters()}
    named = {name: weight.contiguous() for name, weight in found.items() if weight is not None}
    statistics = {name: part(space, genes, name, value) for name, value in supernet.named_buffers()}
    return named | {name: value for name, value in statistics.items() if value is not None}


def filled(space: Space, genes: Genes, supernet: AdaptedBackbone) -> AdaptedBackbone:
    """A member by itself, with copies of its part of the supernet's weights, in evaluation mode."""
    made = member(space, genes, supernet)
    own = made.state_dict()
    made.load_state_dict({name: value for name, value in parts(space, genes, supernet).items() if name in own})
    return made.eval()


def extracted(space: Space, genes: Genes, supernet: AdaptedBackbone) -> AdaptedBackbone:
    """A network as any other out of a member, with an info of its own."""
    widths, info = space.args(space.largest).keys(), supernet.info
    args = {key: value for key, value in supernet.model_args.items() if key not in (*widths, "img_size", "depth")}
    made = create_backbone(space.backbone, image_size=info.size, model_args=args | space.args(genes))
    made.model.load_state_dict(filled(space, genes, supernet).model.state_dict())
    made.info = replace(made.info, mean=info.mean, std=info.std)
    return made


class Entangled:
    """What takes the place of the forward pass of a supernet that is trained."""

    def __init__(self, supernet: AdaptedBackbone, space: Space, seed: int, drop_path: float) -> None:
        self.supernet, self.space, self.seed, self.drop_path = supernet, space, seed, drop_path
        self.whole = supernet.forward
        self.genes: Genes | None = None  # of the step that is under way
        self._alone: AdaptedBackbone | None = None  # that member, without weights of its own

    def choose(self, step: int) -> None:
        """Draw the member that a step trains."""
        self.use(self.space.draw(random.Random(f"{self.seed}/{step}")))

    def use(self, genes: Genes | None) -> None:
        """Train this member from here on; None: the largest."""
        if genes != self.genes:
            self.genes, self._alone = genes, None

    def __call__(self, images: Tensor, mask: Tensor | None = None) -> Features:
        """As ``Backbone.forward``, through the member of this step where gradients are wanted."""
        if self.genes is None or not torch.is_grad_enabled():
            return self.whole(images, mask)
        if self._alone is None:
            with torch.device("meta"):
                self._alone = member(self.space, self.genes, self.supernet, self.drop_path)
        alone = self._alone.train(self.supernet.training)
        found: Features = functional_call(alone, parts(self.space, self.genes, self.supernet), (images, mask))
        info = self.supernet.info
        pooled = F.pad(found.pooled, (0, info.dim - found.pooled.shape[1]))
        missing = info.patch_dim - found.patches.shape[1]
        return Features(pooled, F.pad(found.patches, (0, 0, 0, 0, 0, missing)))


def entangle(method: nn.Module, space: Space, seed: int, drop_path: float = 0.0) -> None:
    """From now on each step of a method trains one member of a space alone, drawn by the seed and the step's number.

    Raises:
        UserError: the method trains no backbone, or one that is not the largest of the space.
    """
    found = [module for module in method.modules() if isinstance(module, AdaptedBackbone)]
    trained = [each for each in found if any(p.requires_grad for p in each.parameters())]
    if len(trained) != 1:
        raise UserError("train.space: the method does not train its backbone; leave train.space out")
    (supernet,) = trained
    wanted = space.args(space.largest)
    own = {key: supernet.model_args.get(key) for key in wanted}
    if supernet.info.name != space.backbone or own != wanted:
        raise UserError(
            f"train.space: the largest of {space.name} is {space.backbone} with {wanted}, the run's backbone is "
            f"{supernet.info.name} with {own}; use ssl-vit compress search, which sets both"
        )
    entangled = Entangled(supernet, space, seed, drop_path)
    supernet.forward = entangled  # type: ignore[method-assign]

    def before(_: nn.Module, given: tuple[Any, ...]) -> None:
        entangled.choose(given[1].step)

    method.register_forward_pre_hook(before)
