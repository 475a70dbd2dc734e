"""Less memory for more arithmetic: parts of a backbone are computed again in backward instead of being kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.timm_adapter import TimmBackbone
from ssl_vit.errors import UserError
from ssl_vit.eval.features import evaluating
from ssl_vit.training.cpu.bfloat16 import lean_bfloat16
from ssl_vit.training.cpu.remade import made, remember

ENOUGH = 1 / 2  # of what a backbone keeps for backward: what it may still keep where timm says what is computed again
SHARE = 1 / 8  # of what a backbone keeps for backward: what one part may keep while it is computed again
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def recompute(model: nn.Module, size: int, lean: bool = True) -> list[str]:
    """Every backbone in the model that is trained keeps what its parts were given, not what they computed (1604.06174).

    Loss and gradients stay what they are, to the bit; names of weights too. Which parts is timm's choice where its own
    switch does the same, else `parts`. size: pixels of a side of its images; lean: whether the step computes some
    functions in the ways of ``training/cpu``. Returns the names of the parts. UserError where a backbone has none, and
    where no backbone is trained.
    """
    found = []
    for name, backbone in model.named_modules():
        if isinstance(backbone, AdaptedBackbone) and any(p.requires_grad for p in backbone.parameters()):
            if not lean and _switched_by_timm(backbone, size):
                found.append(f"{name}.model")
                continue
            chosen = set(parts(backbone, size))
            found += [f"{name}.{place}" for place, module in backbone.named_modules() if module in chosen]
            for part in chosen:
                part.forward = partial(_recomputed, part, part.forward, lean)  # which a copy of the model copies
    if not found:
        raise UserError(
            "train.checkpoint_activations: the method does not train the backbone and keeps nothing of its forward "
            "pass; leave it out"
        )
    return found


def _switched_by_timm(backbone: AdaptedBackbone, size: int) -> bool:
    """Whether timm's ``set_grad_checkpointing`` is on now: where it gives the same numbers and is worth it.

    It moves running statistics twice, and in its second pass it knows nothing of the ways of ``training/cpu``.
    """
    if not isinstance(backbone, TimmBackbone) or _has_statistics(backbone):
        return False
    kept = _measure(backbone, size)[0][backbone]
    try:
        backbone.model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError):  # it has none, or says that it does nothing
        return False
    if _measure(backbone, size)[0][backbone] <= ENOUGH * kept:
        return True
    backbone.model.set_grad_checkpointing(False)  # not in the pass that gives the maps
    return False


def parts(backbone: AdaptedBackbone, size: int) -> list[nn.Module]:
    """The largest modules that keep at most `SHARE` of what the whole keeps, and at least twice what they are given.

    What a module keeps for backward is measured on one image. A module with a hook inside is divided: the backbone
    tells it what to do in this pass, which is over in backward.
    """
    kept, given = _measure(backbone, size)
    limit = SHARE * kept[backbone]

    def divided(module: nn.Module) -> list[nn.Module]:
        worthwhile = kept.get(module, 0) >= 2 * given.get(module, 0) > 0
        if worthwhile and kept[module] <= limit and not _is_told(module):
            return [module]
        smaller = [part for child in module.children() for part in divided(child)]
        covers = 2 * sum(kept[part] for part in smaller) >= kept.get(module, 0)
        return smaller if covers or not worthwhile or _is_told(module) else [module]

    found = [part for child in backbone.model.children() for part in divided(child)]
    if not found:
        raise UserError(
            f"train.checkpoint_activations: {backbone.info.name} has no parts that can be computed again; leave it out"
        )
    return found


def _has_statistics(backbone: nn.Module) -> bool:
    return any(name.rpartition(".")[2] in _RUNNING for name, _ in backbone.named_buffers())


def _is_told(module: nn.Module) -> bool:
    return any(inner._forward_hooks for inner in module.modules() if inner is not module)


def _measure(backbone: AdaptedBackbone, size: int) -> tuple[dict[nn.Module, int], dict[nn.Module, int]]:
    """Bytes that each module keeps for backward and that it is given, in a pass of one image; weights don't count."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*backbone.parameters(), *backbone.buffers())}
    kept: dict[nn.Module, dict[int, int]] = {}
    given: dict[nn.Module, int] = {}
    running: list[nn.Module] = []

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        running.append(module)
        given[module] = sum(tensor.nbytes for tensor in _tensors(args))

    def leave(module: nn.Module, *_: Any) -> None:
        running.remove(module)

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            for module in running:
                kept.setdefault(module, {})[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = next(backbone.parameters()).new_zeros(1, 3, size, size)
    hooks = [module.register_forward_pre_hook(enter) for module in backbone.modules()]
    hooks += [module.register_forward_hook(leave) for module in backbone.modules()]
    try:
        with evaluating(backbone), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            features = backbone(images)  # alive until all is counted, so that no memory is used twice
    finally:
        for hook in hooks:
            hook.remove()
    del features
    return {module: sum(sizes.values()) for module, sizes in kept.items()}, given


def _tensors(args: tuple[Any, ...]) -> list[Tensor]:
    """Those that a module is given, alone or in lists (one for each branch of a network)."""
    each = [inner for arg in args for inner in (arg if isinstance(arg, list | tuple) else [arg])]
    return [tensor for tensor in each if isinstance(tensor, Tensor)]


def _recomputed(part: nn.Module, forward: Callable[..., Any], lean: bool, *args: Any, **kwargs: Any) -> Any:
    """What the part's own forward gives."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    if torch.compiler.is_compiling():  # the compiler makes its own second pass out of what was traced of the first
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    contexts = partial(_contexts, part, _tensors(args)[0].device, lean)
    notes = [made(tensor) for tensor in _tensors(args)]

    def once(*given: Any) -> Any:
        for tensor, note in zip(_tensors(given), notes, strict=True):
            remember(tensor, note)  # in the second pass these are other objects
        return forward(*_own_lists(given), **kwargs)

    return checkpoint(once, *_own_lists(args), use_reentrant=False, context_fn=contexts)


def _own_lists(args: tuple[Any, ...]) -> list[Any]:
    """The same with other lists: the caller may append to his, and a network of branches puts new maps into its."""
    return [list(arg) if isinstance(arg, list) else arg for arg in args]


def _contexts(
    part: nn.Module, device: torch.device, lean: bool
) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What the first pass runs in, and the second, with the functions of the first."""
    return nullcontext(), _again(part, lean_bfloat16(device, lean))


@contextmanager
def _again(part: nn.Module, functions: AbstractContextManager[object]) -> Iterator[None]:
    """Running statistics have seen these images already: in the second pass, copies of them move."""
    kept = []
    for module in part.modules():
        buffers = module._buffers
        kept.append((buffers, {name: buffers[name] for name in _RUNNING if name in buffers}))
    try:
        for buffers, own in kept:
            buffers |= {name: None if buffer is None else buffer.clone() for name, buffer in own.items()}
        with functions:
            yield
    finally:
        for buffers, own in kept:
            buffers |= own
