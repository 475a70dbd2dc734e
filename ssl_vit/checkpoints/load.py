"""The weights of any known file are put into a backbone: renamed, positions resized, and then every key must fit."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from timm.models import is_model, model_entrypoint
from torch import Tensor

from ssl_vit import plugins
from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.registry import create_backbone
from ssl_vit.checkpoints.architectures import POSITIONS
from ssl_vit.checkpoints.colours import Colours, as_colour
from ssl_vit.checkpoints.inspection import Inspection, inspect, not_finite, of_backbone
from ssl_vit.checkpoints.positions import resized
from ssl_vit.errors import UserError

_log = logging.getLogger("ssl_vit")

SAME = 1e-3  # how far the outputs of one network may be apart on different machines, of the largest


def load_weights(backbone: AdaptedBackbone, path: str | Path) -> Inspection:
    """Load a checkpoint of any layout that :func:`inspect` knows, strictly; what was done to it goes to the log.

    Positions are resized to the backbone's grid; a head, a decoder or a projector is left over.

    Raises:
        UserError: an unreadable file, another architecture, or the first key that doesn't fit, with both shapes.
    """
    found = inspect(path)
    for note in put(backbone, found):
        _log.info("%s: %s", found.file, note)
    _normalise_as(backbone, found)
    return found


def opened(path: str | Path) -> Inspection:
    """As :func:`inspect`, of weights that are going to be loaded: what builds their backbone must be at hand.

    Raises:
        UserError: as :func:`inspect`, and for the backbone of a plugin that isn't in use; which to name.
    """
    found = inspect(path)
    if (said := found.description) is not None and said.plugin is not None:
        plugins.require(said.plugin, said.name, str(found.file))
    return found


def backbone_of_file(
    path: str | Path,
    name: str | None = None,
    mean: Sequence[float] | str | None = None,
    std: Sequence[float] | str | None = None,
) -> AdaptedBackbone:
    """Build the backbone that a file or folder holds; its info has the size, mean and deviation of its training.

    name: timm's name of the architecture, where neither the file says it nor its weights are a published model's.
    mean, std: of the images that it was trained on, in [0, 1], where the file doesn't say it or says it wrongly; which
    ones are taken without goes to the log, as a warning where that is a guess.

    Raises:
        UserError: as :func:`load_weights`, and for a file whose architecture is not known.
    """
    found = opened(path)
    said = found.description
    if said is not None and name not in (None, said.name):
        raise UserError(f"--backbone {name}: {found.file} holds {said.name}; leave --backbone out")
    fits = found.architecture
    if fits is not None and name in (None, fits.name):
        backbone = create_backbone(fits.name, image_size=fits.size, model_args=fits.model_args)
    elif name is not None:
        backbone = create_backbone(name)
    else:
        raise UserError(
            f"{found.file}: a weights file does not say its architecture, and it is none that is tried; "
            f"{found.where()}; add --backbone NAME"
        )
    for note in put(backbone, found):
        _log.info("%s: %s", found.file, note)
    _normalise_as(backbone, found, mean, std)
    if said is not None and said.outputs is not None and not plugins.is_same(said.plugin or {}):
        _compare_outputs(backbone, said.outputs, found.file)
    return backbone


def _normalise_as(
    backbone: AdaptedBackbone,
    found: Inspection,
    mean: Sequence[float] | str | None = None,
    std: Sequence[float] | str | None = None,
) -> None:
    """Note in the info by which mean and deviation images are normalised, and say it where the file doesn't."""
    info = backbone.info
    colours = found.colours(info.name, (info.mean, info.std))
    if mean is not None or std is not None:
        given = (
            colours.mean if mean is None else as_colour(mean, "mean"),
            colours.std if std is None else as_colour(std, "std"),
        )
        colours = Colours(*given, "as asked for")
    if found.description is None or (mean, std) != (None, None):
        _log.log(logging.INFO if colours.known else logging.WARNING, "%s: images are %s", found.file, colours)
    backbone.info = replace(info, mean=colours.mean, std=colours.std)


def _compare_outputs(backbone: AdaptedBackbone, then: Sequence[float], file: Path) -> None:
    """UserError where a network whose code has changed gives other outputs than when the file was written."""
    name, now = backbone.info.name, backbone.fingerprint()
    apart = max(abs(a - b) for a, b in zip(now, then, strict=True)) / max(map(abs, then))
    if not apart < SAME:
        raise UserError(
            f"{file}: {name} gives other outputs than when the weights were written, {apart:.1g} of the largest apart, "
            "as its plugin has changed; restore the plugin"
        )
    _log.warning("%s: %s gives the outputs that it gave then, within %.1g of the largest", file, name, apart)


def put(backbone: AdaptedBackbone, found: Inspection) -> list[str]:
    """Load what was found, strictly, and say what was changed, in words. UserError as :func:`fitted_weights`."""
    state, notes = fitted_weights(backbone, found)
    backbone.model.load_state_dict(state, strict=True)
    return notes


def fitted_weights(backbone: AdaptedBackbone, found: Inspection) -> tuple[dict[str, Tensor], list[str]]:
    """Fit the weights to a backbone: its state dict, and whose they were and what was changed, in words.

    The backbone is not changed, and may be on the meta device.

    Raises:
        UserError: another architecture, or the first key that doesn't fit, with both shapes.
    """
    said, name = found.description, backbone.info.name
    if said is not None and said.name != name:
        raise UserError(f"{found.file}: weights of {said.name}, expected {name}; choose --backbone {said.name}")
    expected: dict[str, Tensor] = backbone.model.state_dict()
    try:
        return _fitted(backbone, found, expected)
    except UserError:
        others = found.elsewhere(expected) if found.state.keys().isdisjoint(expected) else ()
        for other in others:
            with suppress(UserError):
                return _fitted(backbone, other, expected)
        raise


def _fitted(
    backbone: AdaptedBackbone, found: Inspection, expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    named = found.own if found.own.keys() == expected.keys() else found.state
    state, notes = resized(named, found.description, backbone, found.file)
    if not _same_shapes(state, expected):
        state, more = _fit(backbone, replace(found, state=state), expected)
        notes += more
    _compare(found, backbone.info.name, state, expected)
    _check_finite(found.file, backbone, state)
    left = f"; left over: {found.groups()}" if found.left else ""
    return state, [f"{found.layout}, names of {found.names}: {len(state)} tensors{found.taken()}{left}", *notes]


def _fit(
    backbone: AdaptedBackbone, found: Inspection, expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    notes: list[str] = []
    fitted = dict(found.state)
    if not _same_shapes(fitted, expected):
        fitted = _official(backbone, found)
    for key, value in fitted.items():
        if key in found.state and value.shape != (before := found.state[key]).shape:
            if POSITIONS.search(key) is None:
                fitted[key] = before  # timm would resize a patch embedding too, and hide another architecture
            else:
                notes.append(f"{key} resized from {tuple(before.shape)} to {tuple(value.shape)}")
    for kind in ("weight", "bias"):
        if f"fc_norm.{kind}" in expected and f"fc_norm.{kind}" not in fitted and f"norm.{kind}" in fitted:
            fitted[f"fc_norm.{kind}"] = fitted.pop(f"norm.{kind}")
            notes.append(f"norm.{kind}, of every token, is now fc_norm.{kind}, of their mean")
    for key in fitted.keys() & expected.keys():
        if expected[key].shape == (*fitted[key].shape, 1, 1):  # a linear layer that is a 1 × 1 convolution here
            fitted[key] = fitted[key][..., None, None]
    heads = [key for key in fitted.keys() - expected.keys() if _of_classifier(backbone, key)]
    if heads:
        fitted = {key: value for key, value in fitted.items() if key not in heads}
        notes.append(f"left out its classifier: {', '.join(sorted(heads))}")
    zeros = [key for key in expected if key not in fitted and _is_zero(key, found.left)]
    fitted |= {key: torch.zeros_like(expected[key]) for key in zeros}
    counters = [key for key in expected if key.endswith("num_batches_tracked") and key not in fitted]
    if counters:
        fitted |= {key: torch.zeros_like(expected[key]) for key in counters}
        notes.append(f"{len(counters)} counters of batch norm start at 0")
    return fitted, notes


def _is_zero(key: str, left: Sequence[str]) -> bool:
    """Whether it is a bias of queries or values that was left out for being 0 everywhere, as in most of DINOv3."""
    block, _, part = key.rpartition(".")
    return part in ("q_bias", "v_bias") and any(name.endswith(f"{block}.qkv.bias") for name in left)


def _of_classifier(backbone: AdaptedBackbone, key: str) -> bool:
    """By the names that timm has for this model's classifier."""
    names = getattr(backbone.model, "pretrained_cfg", {}).get("classifier") or ()
    return any(key.startswith(f"{name}.") for name in ((names,) if isinstance(names, str) else names))


def _same_shapes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return state.keys() == expected.keys() and all(state[key].shape == expected[key].shape for key in expected)


def _official(backbone: AdaptedBackbone, found: Inspection) -> dict[str, Tensor]:
    """Through the family's own map from its official names, where it has one."""
    if not is_model(backbone.info.name):
        return dict(found.state)
    family = vars(sys.modules[model_entrypoint(backbone.info.name).__module__])
    ours, timms = family.get("load_official"), family.get("checkpoint_filter_fn")
    try:
        if ours is not None:
            return of_backbone(ours(found.own))
        return dict(timms(dict(found.state), backbone.model)) if timms is not None else dict(found.state)
    except (KeyError, IndexError, RuntimeError, AttributeError, AssertionError, ValueError):
        return dict(found.state)  # of another architecture: the comparison that follows says where


def _compare(found: Inspection, name: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The first key that doesn't fit is the user's error."""
    file, where = found.file, f"; {found.where()}" if state.keys().isdisjoint(expected) else ""
    for key, value in expected.items():
        if key not in state:
            raise UserError(
                f"{file}: {key} {tuple(value.shape)} of {name} is missing; is it another model's file?{where}"
            )
        if state[key].shape != value.shape:
            before, wanted = tuple(state[key].shape), tuple(value.shape)
            why = "" if POSITIONS.search(key) is None else ", and its grid is not known, or is no square"
            raise UserError(
                f"{file}: {key} is {before}, {name} expects {wanted}{why}; match image_size and model_args to the file"
            )
    for key, value in state.items():
        if key not in expected:
            raise UserError(f"{file}: {key} {tuple(value.shape)} is not part of {name}; is it another model's file?")


def _check_finite(file: Path, backbone: AdaptedBackbone, state: Mapping[str, Tensor]) -> None:
    """UserError for NaN and infinity where a network has learnt something: masks alone may hold them."""
    learnt = {key for key, _ in backbone.model.named_parameters()}
    broken = [key for key in not_finite(state) if key in learnt or key.rpartition(".")[2].startswith("running_")]
    if broken:
        raise UserError(
            f"{file}: {broken[0]}{f' and {len(broken) - 1} more' if broken[1:] else ''} hold NaN or infinity, no "
            "weights; its training diverged, or the file is damaged: take an earlier one"
        )
