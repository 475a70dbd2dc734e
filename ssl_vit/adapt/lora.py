"""LoRA: a network's weights stay as they are, and what is trained beside them are small products (2106.09685).

A linear layer with the weight W then computes with W + B A, of which A [rank, in] and B [out, rank] are trained. It
keeps its name and that of its weight; B begins at 0, so that the first step is the file's own network, to the bit.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_vit.adapt.sparing import beside, forget, remember
from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.errors import UserError

KINDS = {"attention": re.compile(r"attn|attention"), "mlp": re.compile(r"mlp|ffn|feed_?forward|fc1|fc2")}
"""Words for what layers belong to, and what the names of such layers have in them."""
ALL = "linear"
"""The word for every linear layer."""
_A, _B = "lora_A", "lora_B"


class LowRank(nn.Linear):
    """What a linear layer of any class becomes: its weight W, frozen, and the product B A beside it."""

    lora_A: nn.Parameter  # noqa: N815  # [rank, in], as peft names it
    lora_B: nn.Parameter  # noqa: N815  # [out, rank]
    own_way: bool  # whether its class had a forward of its own

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # computed, for code that reads it beside the layer's forward
        """W + B A, [out, in]."""
        return self.base + self.lora_B @ self.lora_A

    @property
    def base(self) -> nn.Parameter:
        """W, [out, in], without gradient."""
        found = self._parameters["weight"]
        assert found is not None
        return found

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] to [..., out], in the layer's own way where its class has one."""
        if self.own_way:
            return super().forward(input)  # which reads the weight
        return beside(input, self.base, self.bias, self.lora_A, self.lora_B)


def _class_of(layer: LowRank) -> Any:
    """The class that a layer had before."""
    return type(layer).__mro__[2]


@cache
def _low_rank(kind: Any) -> type[Any]:
    """The class of layers of this kind that have a product beside their weight."""
    return type(f"LowRank{kind.__name__}", (LowRank, kind), {})


def adapt(backbone: AdaptedBackbone, rank: int, targets: Sequence[str], *, sparing: bool = True) -> list[str]:
    """Freeze a backbone's model, and train products of a rank beside the layers of ``targets``; the names of those.

    targets: as :func:`chosen` takes them; sparing: keep less for backward, unless all is made again there anyway.
    Statistics of batch norm, which no small file could hold, stay the file's.

    Raises:
        UserError: as :func:`chosen`.
    """
    names = chosen(backbone, targets)
    backbone.model.requires_grad_(False)
    for name in names:
        layer = backbone.model.get_submodule(name)
        weight = layer.weight
        first = torch.empty(rank, weight.shape[1], device=weight.device, dtype=weight.dtype)
        nn.init.uniform_(first, -(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5)  # as LoRA's authors begin
        layer.own_way = type(layer).forward is not nn.Linear.forward
        kind: Any = type(layer)
        layer.__class__ = _low_rank(kind)
        layer.register_parameter(_A, nn.Parameter(first))
        layer.register_parameter(_B, nn.Parameter(weight.new_zeros(len(weight), rank)))
    for module in backbone.model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 0.0
    if sparing:
        remember(backbone.model)
    return names


def chosen(backbone: AdaptedBackbone, targets: Sequence[str]) -> list[str]:
    """The names of a model's linear layers that are meant by words (attention, mlp, linear) or by names of layers.

    The name of a layer may be whole ("blocks.0.attn.qkv") or its end ("qkv"). Words that mean nothing in this model
    are left out where another one means something.

    Raises:
        UserError: a model without linear layers, a target that is neither a word nor a layer's name, or no layer meant.
    """
    layers, name = linear_layers(backbone), backbone.info.name
    if not layers:
        raise UserError(
            f"adapt.lora_rank: {name} has no linear layers to train products beside; leave it out, or choose another "
            "backbone"
        )
    ends = dict.fromkeys(layer.rpartition(".")[2] for layer in layers)
    offered = f"expected attention, mlp, linear, or names of its layers, as {', '.join(list(ends)[:8])}"
    for target in targets:
        if target not in (ALL, *KINDS) and not any(_is(layer, target) for layer in layers):
            raise UserError(f"adapt.lora_targets: {target!r} is no linear layer of {name}; {offered}")
    found = [layer for layer in layers if any(_is(layer, target) for target in targets)]
    if not found:
        raise UserError(f"adapt.lora_targets: {name} has no {' and no '.join(targets)}; {offered}")
    return found


def _is(layer: str, target: str) -> bool:
    if target in KINDS:
        return KINDS[target].search(layer.lower()) is not None
    return target == ALL or f".{layer}".endswith(f".{target}")


def linear_layers(backbone: AdaptedBackbone) -> list[str]:
    """The names of all linear layers of its model."""
    return [name for name, module in backbone.model.named_modules() if isinstance(module, nn.Linear)]


def products(model: nn.Module) -> Iterator[tuple[str, LowRank]]:
    """Every layer that has a product beside its weight, with its name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LowRank))


def merged(backbone: AdaptedBackbone) -> AdaptedBackbone:
    """A copy whose weights are W + B A, of the classes that it was built of; itself where it has no products."""
    if not any(products(backbone.model)):
        return backbone
    found = copy.deepcopy(backbone)
    for _, layer in list(products(found.model)):
        _undo(layer, nn.Parameter(layer.weight.detach().clone()))
    forget(found.model)
    return found


def without_products(backbone: AdaptedBackbone) -> AdaptedBackbone:
    """A copy as it was before products were trained beside its layers, with these layers' own weights, not copies."""
    found = copy.deepcopy(backbone)
    for _, layer in list(products(found.model)):
        _undo(layer, layer.base)
    forget(found.model)
    if any(products(backbone.model)):
        _share(found, backbone)
    return found


def _undo(layer: LowRank, weight: nn.Parameter) -> None:
    """Make a layer what it was, with this weight."""
    del layer._parameters[_A], layer._parameters[_B], layer.own_way
    layer._parameters["weight"] = weight
    layer.__class__ = _class_of(layer)


def merged_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with W + B A in place of the three; as it is where it has no products."""
    found = {key: value for key, value in state.items() if key.rpartition(".")[2] not in (_A, _B)}
    for key in state.keys() - found.keys():
        layer, _, part = key.rpartition(".")
        if part == _A:
            found[f"{layer}.weight"] = found[f"{layer}.weight"] + state[f"{layer}.{_B}"] @ state[key]
    return found


def share_frozen(teacher: nn.Module, student: nn.Module) -> None:
    """Let a teacher that is a copy use the student's own weights of a file where products are trained beside them.

    They never differ, so that one copy of them lies in memory.
    """
    for ours, theirs in zip(teacher.modules(), student.modules(), strict=True):
        if isinstance(ours, AdaptedBackbone) and isinstance(theirs, AdaptedBackbone) and any(products(theirs.model)):
            _share(ours, theirs)


def _share(copied: AdaptedBackbone, original: AdaptedBackbone) -> None:
    """Give a copy the original's own weights, but for products."""
    for mine, its in zip(copied.model.modules(), original.model.modules(), strict=True):
        mine._parameters |= {name: weight for name, weight in its._parameters.items() if name not in (_A, _B)}
