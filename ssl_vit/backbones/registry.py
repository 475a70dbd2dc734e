"""Backbones by name: timm's, and our own families, which register in timm's registry when they are imported."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import timm
from timm.models import model_entrypoint

from ssl_vit.backbones import families
from ssl_vit.backbones.anatomy import Anatomy, Argument, build_model, examine
from ssl_vit.backbones.backbone import BackboneInfo
from ssl_vit.backbones.kinds import kind_of
from ssl_vit.backbones.timm_adapter import TimmBackbone
from ssl_vit.backbones.variants import variants
from ssl_vit.errors import UserError
from ssl_vit.spelling import did_you_mean

_FEW = 60  # names in a table whose models are looked at, at about a second each


@dataclass(frozen=True)
class BackboneRow:
    """One line of the table of backbones; `info` only where few were asked for."""

    name: str
    family: str
    kind: str | None  # None for a family that was not looked at and that the table of kinds doesn't know
    info: BackboneInfo | None
    parameters: int | None = None  # known for all models of ours, and for others that were looked at
    paper: str | None = None  # arXiv id, for models of ours


def create_backbone(
    name: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    drop_path: float = 0.0,
    model_args: Mapping[str, Argument] | None = None,
    masked: bool = False,
) -> TimmBackbone:
    """Any name of :func:`list_backbones` as a backbone with random weights.

    image_size: pixels, one number or (height, width); the published size without. drop_path: the rate of stochastic
    depth. model_args: what timm's constructor takes, such as ``{"patch_size": 8}``. masked: own the mask token that
    masked images need. ``ssl_vit.load_weights`` puts the weights of a file into it.

    Errors: UserError for an unknown name, key or size, and for stochastic depth where there is none.

    >>> backbone = create_backbone("vit_tiny_patch16_224", model_args={"depth": 1})
    >>> backbone.info.dim, backbone.info.patch, backbone.info.any_size, backbone.info.multiple
    (192, 16, True, 16)
    """
    anatomy = _anatomy(name, image_size, model_args)
    args: dict[str, Argument] = dict(anatomy.build_args)
    if anatomy.info.drops_paths:
        args["drop_path_rate"] = drop_path
    elif drop_path:
        raise UserError(f"drop_path is {drop_path}, but {name} has no stochastic depth; set drop_path to 0")
    return TimmBackbone(build_model(name, args), anatomy, masked)


def backbone_info(
    name: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    model_args: Mapping[str, Argument] | None = None,
) -> BackboneInfo:
    """What :func:`create_backbone` would make, without making its weights.

    >>> info = backbone_info("resnet50")
    >>> info.parameters, info.dim, [stage.stride for stage in info.stages]
    (23508032, 2048, [2, 4, 8, 16, 32])
    """
    return _anatomy(name, image_size, model_args).info


def list_backbones(pattern: str = "*") -> list[BackboneRow]:
    """Every name that matches a pattern with ``*`` and ``?``, sorted as timm sorts them.

    >>> [row.name for row in list_backbones("vit_tiny_patch16_???")]
    ['vit_tiny_patch16_224', 'vit_tiny_patch16_384']
    """
    _import_families()
    names: list[str] = timm.list_models(pattern)
    if not names:
        raise UserError(
            f"{pattern}: no backbone has such a name; {did_you_mean(pattern.strip('*?'), timm.list_models(), 3)}"
        )
    return [_row(name, looked_at=len(names) <= _FEW) for name in names]


def _row(name: str, looked_at: bool) -> BackboneRow:
    family = _family(name)
    info = backbone_info(name) if looked_at else None
    kind = info.kind if info else kind_of(name, family)
    if name not in variants():
        return BackboneRow(name, family, kind, info, info.parameters if info else None)
    config = timm.get_pretrained_cfg(name)
    paper = str(config.paper_ids) if config else None
    return BackboneRow(name, family, kind, info, variants()[name].parameters, paper)


def _anatomy(name: str, image_size: int | tuple[int, int] | None, model_args: Mapping[str, Argument] | None) -> Anatomy:
    _import_families()
    if not timm.is_model(name):
        raise UserError(f"{name}: no such backbone; {did_you_mean(name, timm.list_models(), 3)}")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    args = {key: tuple(value) if isinstance(value, list) else value for key, value in (model_args or {}).items()}
    return examine(name, _family(name), size, tuple(sorted(args.items())))


def _family(name: str) -> str:
    """timm's module of a name."""
    module: str = model_entrypoint(name).__module__
    return module.rpartition(".")[2]


@cache
def _import_families() -> None:
    """Import every file of our families; each registers its names in timm's registry."""
    for module in pkgutil.iter_modules(families.__path__, f"{families.__name__}."):
        importlib.import_module(module.name)
