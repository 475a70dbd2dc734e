"""The optimiser, its parameter groups, and clipping: no Python loop over parameters in a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from timm.optim._optim_factory import create_optimizer_v2
from timm.optim._param_groups import param_groups_layer_decay
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ssl_vit.backbones.adapter import AdaptedBackbone

SLOW = 0.1  # of the rate, for parameters that a method names


def parameter_groups(
    model: nn.Module, layer_decay: float = 1.0, head_weight_decay: float | None = None, backbone_rate: float = 1.0
) -> list[dict[str, Any]]:
    """The groups of an optimiser: weights, which decay, and biases and 1-D parameters, which don't (as in DINO's code).

    A model may have an attribute ``slow``, parts of the names of parameters that learn at a tenth of the rate: they
    come in groups of their own. layer_decay: the rate of a backbone's layer over that of the next one; what is on top
    of the backbone, heads and all, has the whole rate, and the backbone ``backbone_rate`` of it. head_weight_decay:
    that of all but backbones, where it is another one.
    """
    slow: tuple[str, ...] = getattr(model, "slow", ())
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    scales, bodies = layer_scales(model, layer_decay, backbone_rate), _of_backbones(model)
    kinds: dict[tuple[float, bool], list[tuple[str, nn.Parameter]]] = {(1.0, False): []}
    for name, p in trained:
        scale = scales.get(p, 1.0) * (SLOW if any(part in name for part in slow) else 1.0)
        head = head_weight_decay is not None and p not in bodies
        kinds.setdefault((scale, head), []).append((name, p))
    groups = []
    for (scale, head), named in kinds.items():
        own = {"scale": scale} if scale != 1 else {}
        fixed = {"decays": False, "weight_decay": head_weight_decay} if head else {}
        decaying, rest = _by_decay(named)
        groups += [decaying | own | fixed, rest | own]
    return groups


def layer_scales(model: nn.Module, layer_decay: float, backbone_rate: float = 1.0) -> dict[nn.Parameter, float]:
    """The share of the learning rate of each weight of a trained backbone, by timm's idea of its layers."""
    if layer_decay == backbone_rate == 1:
        return {}
    found: dict[nn.Parameter, float] = {}
    for backbone in backbones_of(model):
        if layer_decay == 1:
            found |= dict.fromkeys(backbone.model.parameters(), backbone_rate)
            continue
        for group in param_groups_layer_decay(backbone.model, layer_decay=layer_decay):
            found |= dict.fromkeys(group["params"], group["lr_scale"] * backbone_rate)
    return found


def backbones_of(model: nn.Module) -> list[AdaptedBackbone]:
    """The backbones in a method: the one that is trained, and a teacher's."""
    return [module for module in model.modules() if isinstance(module, AdaptedBackbone)]


def hold_backbones(model: nn.Module) -> None:
    """Drop the gradients of all backbones, so that an optimiser leaves their weights, and what it knows of them, alone.

    A mask token beside them is new and learns like a head.
    """
    for backbone in backbones_of(model):
        for parameter in backbone.model.parameters():
            parameter.grad = None


def _of_backbones(model: nn.Module) -> set[nn.Parameter]:
    return {p for backbone in backbones_of(model) for p in backbone.parameters()}


def _by_decay(named: list[tuple[str, nn.Parameter]]) -> tuple[dict[str, Any], dict[str, Any]]:
    decay = [p for name, p in named if p.ndim > 1 and not name.endswith(".bias")]
    rest = [p for name, p in named if p.ndim <= 1 or name.endswith(".bias")]
    return {"params": decay, "decays": True}, {"params": rest, "decays": False, "weight_decay": 0.0}


def make_optimizer(
    model: nn.Module,
    name: str,
    lr: float,
    beta2: float = 0.999,
    layer_decay: float = 1.0,
    head_weight_decay: float | None = None,
    backbone_rate: float = 1.0,
) -> torch.optim.Optimizer:
    """AdamW (1711.05101; beta1 0.9) or SGD with momentum 0.9 in torch's fused kernels, one of timm's, `schedule_free`.

    Adafactor is that of 2106.04560: momentum in bfloat16, squares factored and their share kept at most 0.999, no
    relative step and no clipping. The last three are those of `parameter_groups`.
    """
    groups = parameter_groups(model, layer_decay, head_weight_decay, backbone_rate)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, beta2), fused=True)
    if name == "sgd":
        whole = not any(isinstance(p, DTensor) for p in model.parameters())  # the fused kernel knows no sharded ones
        return with_momentum(torch.optim.SGD(groups, lr=lr, momentum=0.9, fused=whole))
    groups = [group for group in groups if group["params"]]
    if name == "adafactor":
        return create_optimizer_v2(groups, opt="adafactorbv", lr=lr, weight_decay=0.0, min_dim_size_to_factor=32)
    if name == "schedulefree":
        return schedule_free(groups, lr, beta2)
    more: dict[str, Any] = {"betas": (0.9, beta2)} if name == "lamb" else {}
    return create_optimizer_v2(groups, opt=name, lr=lr, weight_decay=0.0, **more)


def schedule_free(groups: list[dict[str, Any]], lr: float, beta2: float) -> torch.optim.Optimizer:
    """AdamW without a schedule (2405.15682), which trains weights between the newest and their average."""
    from schedulefree import AdamWScheduleFree

    optimizer: torch.optim.Optimizer = AdamWScheduleFree(groups, lr=lr, betas=(0.9, beta2))
    optimizer.train()  # type: ignore[attr-defined]  # theirs alone; never switched: `averaged` is computed beside
    return optimizer


def averaged(optimizer: torch.optim.Optimizer) -> dict[Tensor, Tensor]:
    """By weight of a `schedule_free` optimiser, the average, which is what is looked at and kept; of others, nothing.

    The package's own switch changes the weights in place and back, which would not give the same bits.
    """
    found = {}
    for group in optimizer.param_groups:
        for p in group["params"] if "weight_lr_power" in group else []:
            if (newest := optimizer.state.get(p, {}).get("z")) is not None:  # it has had a gradient
                found[p] = p.detach().lerp(newest, 1 - 1 / group["betas"][0])
    return found


def with_momentum(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Give every parameter of an SGD a momentum of 0 to begin with, and change nothing else.

    Without one, the first gradient becomes the momentum, which is the same; but torch's fused kernel fails where some
    parameters have one and others don't, as those whose gradients are dropped at first (a head's last layer).
    """
    if isinstance(optimizer, torch.optim.SGD):
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            if optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_hyperparameters(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Learning rate everywhere, in the slow groups a part of it; weight decay where it applies."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)
        if group["decays"]:
            group["weight_decay"] = weight_decay


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Those tensors, or of sharded ones the parts that this process holds."""
    return [each.to_local() if isinstance(each, DTensor) else each for each in tensors]


def norms_of(gradients: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The norm [] of each gradient; of a sharded one, of the whole."""
    norms: tuple[Tensor, ...] = torch._foreach_norm(local(gradients))
    if any(isinstance(each, DTensor) for each in gradients):  # then all are
        squares = torch.stack(norms).square()
        torch.distributed.all_reduce(squares)
        norms = squares.sqrt().unbind()
    return norms


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], limit: float, per_tensor: bool) -> Tensor:
    """Scale gradients whose norm is above ``limit`` (0: none) in place; the total norm before, [].

    per_tensor: each tensor by its own norm, as DINO does; else all by their common norm. A gradient that is sharded
    over processes counts, and is scaled, as a whole.
    """
    found = [p.grad for p in parameters if p.grad is not None]
    if not found:  # nothing learns beside a backbone that is held
        return torch.zeros(())
    gradients, norms = local(found), norms_of(found)
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms).float())
    if limit > 0 and per_tensor:
        torch._foreach_add_(norms, 1e-6)
        torch._foreach_reciprocal_(norms)
        torch._foreach_mul_(norms, limit)
        torch._foreach_clamp_max_(norms, 1.0)
        torch._foreach_mul_(gradients, norms)
    elif limit > 0:
        torch._foreach_mul_(gradients, (limit / (total + 1e-6)).clamp(max=1.0))
    return total
