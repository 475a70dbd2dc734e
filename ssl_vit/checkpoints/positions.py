"""Positions of another grid than the model's: resized by the grid that they were trained on, or refused."""

from __future__ import annotations

import inspect as signatures
import math
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from torch import Tensor

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.layers import Size
from ssl_vit.backbones.registry import backbone_info, create_backbone
from ssl_vit.checkpoints.architectures import POSITIONS
from ssl_vit.checkpoints.description import Description
from ssl_vit.errors import UserError

_KNOWS_WINDOWS = "old_window_size" in signatures.signature(resize_rel_pos_bias_table).parameters  # timm's newer ones


def resized(
    state: Mapping[str, Tensor], said: Description | None, backbone: AdaptedBackbone, file: object
) -> tuple[dict[str, Tensor], list[str]]:
    """Resize positions where one of the two grids is no square, which the family's own map would take for one.

    said: what the file says of itself, with the size of its images. Grids that are squares stay as they are.

    Returns:
        The weights, and what was done, in words.

    Raises:
        UserError: positions whose grid can't be known.
    """
    expected = backbone.model.state_dict()
    found = None if said is None else backbone_info(said.name, image_size=said.size, model_args=said.model_args).grid
    target, changed, notes = backbone.info.grid, dict(state), list[str]()
    if found == target or (found is not None and _square(found) and _square(target)):
        return changed, notes
    for key in (key for key in state if POSITIONS.search(key) and key in expected):
        value, wanted = state[key], expected[key]
        if found is None:
            notes += _unknown(key, value, wanted, target)
        elif key == "pos_embed" and value.ndim == 3:
            tokens = value.shape[1] - found[0] * found[1]
            if tokens != wanted.shape[1] - target[0] * target[1] or tokens < 0:
                continue  # no table of one position a patch: the comparison that follows says what differs
            changed[key] = resample_abs_pos_embed(value, list(target), list(found), num_prefix_tokens=tokens)
            notes.append(f"{_shapes(key, value, wanted)}, of {_text(found)} to {_text(target)} patches")
        elif said is not None and (windows := _windows(key, said, backbone)) and windows[0] != windows[1]:
            changed[key] = _table(key, value, wanted, windows, file)
            notes.append(f"{_shapes(key, value, wanted)}, of windows of {_text(windows[0])} to {_text(windows[1])}")
        elif value.shape != wanted.shape:
            raise UserError(
                f"{file}: {key} is of another grid than {_text(target)} patches and can't be resized; set "
                "backbone.image_size as it was trained"
            )
    return changed, notes


def _unknown(key: str, value: Tensor, wanted: Tensor, target: Size) -> list[str]:
    """Where the file doesn't say its grid, the family's own map takes it for a square, which is said."""
    if key != "pos_embed" or value.ndim != 3 or value.shape == wanted.shape:
        return []
    count = value.shape[1] - (wanted.shape[1] - target[0] * target[1])
    side = math.isqrt(max(count, 0))
    return [f"{key}: its {count} positions are taken for a grid of {side} × {side} patches"]


def _windows(key: str, said: Description, backbone: AdaptedBackbone) -> tuple[Size, Size] | None:
    """The windows of a table of relative positions, as the file's network and this one have them."""
    with torch.device("meta"):
        source: Any = create_backbone(said.name, image_size=said.size, model_args=said.model_args).model
    module = key.rpartition(".")[0]
    found: list[Any] = [getattr(model.get_submodule(module), "window_size", None) for model in (source, backbone.model)]
    if None in found:
        return None
    before, after = ((window, window) if isinstance(window, int) else tuple(window) for window in found)
    return before, after


def _table(key: str, value: Tensor, wanted: Tensor, windows: tuple[Size, Size], file: object) -> Tensor:
    if not _KNOWS_WINDOWS:
        raise UserError(
            f"{file}: {key} is of windows of {_text(windows[0])}, which this timm can't resize; update timm"
        )
    table: Tensor = resize_rel_pos_bias_table(value, windows[1], tuple(wanted.shape), old_window_size=windows[0])
    return table


def _square(grid: Size) -> bool:
    return grid[0] == grid[1]


def _text(grid: Size) -> str:
    return f"{grid[0]} × {grid[1]}"


def _shapes(key: str, before: Tensor, after: Tensor) -> str:
    return f"{key} resized from {tuple(before.shape)} to {tuple(after.shape)}"
