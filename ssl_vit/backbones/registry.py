"""Backbones by name: timm's, our own families, which register in timm's registry when they are imported, and yours.

Yours come by the same door as methods (``ssl_vit.registry``): in timm's registry by its conventions, or as any module
whose shape is declared.
"""

from __future__ import annotations

import fnmatch
import importlib
import pkgutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import timm
from timm.models import model_entrypoint

from ssl_vit.backbones import families, module_adapter
from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.anatomy import Anatomy, Argument, build_model, examine
from ssl_vit.backbones.backbone import BackboneInfo
from ssl_vit.backbones.kinds import kind_of
from ssl_vit.backbones.taxonomy import places_of
from ssl_vit.backbones.timm_adapter import TimmBackbone
from ssl_vit.backbones.variants import variants
from ssl_vit.errors import UserError
from ssl_vit.registry import BACKBONES, BackboneEntry, load_sources
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
    mixer: tuple[str, ...] = ()  # its places in the taxonomy


def create_backbone(
    name: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    drop_path: float = 0.0,
    model_args: Mapping[str, Argument] | None = None,
    masked: bool = False,
) -> AdaptedBackbone:
    """Any name of :func:`list_backbones` as a backbone with random weights.

    image_size: pixels, one number or (height, width); the published size without. drop_path: the rate of stochastic
    depth. model_args: what timm's constructor takes, such as ``{"patch_size": 8}``. masked: own the mask token that
    masked images need. ``ssl_vit.load_weights`` puts the weights of a file into it.

    Errors: UserError for an unknown name, key or size, and for stochastic depth where there is none.

    >>> backbone = create_backbone("vit_tiny_patch16_224", model_args={"depth": 1})
    >>> backbone.info.dim, backbone.info.patch, backbone.info.any_size, backbone.info.multiple
    (192, 16, True, 16)
    """
    if entry := _entry(name):
        return module_adapter.create(entry, _size(image_size), drop_path, _hashable(model_args), masked)
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


def usual_size(name: str, model_args: Mapping[str, Argument] | None = None) -> int:
    """The height in pixels that a name was built for; without a look at the network where timm's tables say it."""
    config = None if _entry(name) or "img_size" in (model_args or {}) else timm.get_pretrained_cfg(name)
    size: int = config.input_size[1] if config else backbone_info(name, model_args=model_args).size[0]
    return size


def backbone_name(backbone: str | AdaptedBackbone) -> str:
    """The name of a backbone that is given by it, or as :func:`ssl_vit.as_backbone` made it.

    Raises:
        UserError: something else, as a bare module whose shape nobody has declared.
    """
    name = backbone if isinstance(backbone, str) else getattr(getattr(backbone, "info", None), "name", None)
    if not isinstance(name, str):
        raise UserError(
            f"backbone: got a {type(backbone).__name__}; expected a name, or "
            "ssl_vit.as_backbone(module, kind=…, dim=…, stride=…)"
        )
    return name


def list_backbones(pattern: str = "*", mixer: str | None = None) -> list[BackboneRow]:
    """Every name that matches a pattern with ``*`` and ``?``, sorted as timm sorts them; then what timm doesn't know.

    mixer: a place of ``ssl_vit.backbones.taxonomy.PLACES``, of which alone they are to be.

    >>> [row.name for row in list_backbones("vit_tiny_patch16_???")]
    ['vit_tiny_patch16_224', 'vit_tiny_patch16_384']
    """
    _import_all()
    names: list[str] = timm.list_models(pattern)
    names += [name for name in fnmatch.filter(BACKBONES.names(), pattern) if name not in names]
    if not names:
        raise UserError(
            f"{pattern}: no backbone has such a name; {did_you_mean(pattern.strip('*?'), timm.list_models(), 3)}"
        )
    if mixer is not None:
        names = [name for name in names if mixer in places_of(name)]
    rows = [_row(name, looked_at=len(names) <= _FEW) for name in names]
    return [replace(row, mixer=places_of(row.name)) for row in rows]


def _row(name: str, looked_at: bool) -> BackboneRow:
    if not looked_at and not timm.is_model(name) and (package := BACKBONES.package_of(name)):
        return BackboneRow(name, package, None, None)  # to know more it would have to be imported
    entry, info = _entry(name), backbone_info(name) if looked_at else None
    if entry is not None:
        family = entry.origin.file.stem if entry.origin.file else entry.origin.module
        return BackboneRow(name, family, entry.declared.kind, info, info.parameters if info else None)
    module = model_entrypoint(name).__module__
    family, kind = module.rpartition(".")[2], info.kind if info else kind_of(name, module)
    if name not in variants():
        return BackboneRow(name, family, kind, info, info.parameters if info else None)
    config = timm.get_pretrained_cfg(name)
    paper = str(config.paper_ids) if config else None
    return BackboneRow(name, family, kind, info, variants()[name].parameters, paper)


def _entry(name: str) -> BackboneEntry | None:
    """What timm doesn't know; None where it does. UserError for a name that neither has, or both."""
    _import_all()
    if name in BACKBONES.announced and name not in BACKBONES.entries:
        known = timm.is_model(name)
        BACKBONES.import_announced(name)
        if not known and not timm.is_model(name) and name not in BACKBONES.entries:
            BACKBONES.refuse_empty(name)
    entry = BACKBONES.entries.get(name)
    if entry is not None and timm.is_model(name):
        raise UserError(
            f"the backbone {name!r} is taken: {entry.origin} and {model_entrypoint(name).__module__} register it; "
            "rename yours"
        )
    if entry is None and not timm.is_model(name):
        raise UserError(f"{name}: no such backbone; {_near(name)}")
    return entry


def _anatomy(name: str, image_size: int | tuple[int, int] | None, model_args: Mapping[str, Argument] | None) -> Anatomy:
    args = tuple(sorted(_hashable(model_args).items()))
    if entry := _entry(name):
        return module_adapter.examine(entry, _size(image_size), args)
    return examine(name, model_entrypoint(name).__module__, _size(image_size), args)


def _size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """A pair, also of a list, as YAML and JSON have them; UserError for anything else than one or two numbers."""
    if image_size is None:
        return None
    pair = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise UserError(f"image_size: {image_size}; expected pixels, one number or (height, width)")
    return pair


def _hashable(model_args: Mapping[str, Argument] | None) -> dict[str, Argument]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in (model_args or {}).items()}


def _near(name: str) -> str:
    return did_you_mean(name, [*timm.list_models(), *BACKBONES.names()], 3)


def _import_all() -> None:
    """Our families, and then the plugins, none of which may take a name of ours."""
    _import_families()
    load_sources()


@cache
def _import_families() -> None:
    """Import every file of our families; each registers its names in timm's registry."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Overwriting .* in registry", UserWarning)
        for module in pkgutil.iter_modules(families.__path__, f"{families.__name__}."):
            try:
                importlib.import_module(module.name)
            except UserWarning as error:
                raise UserError(
                    f"a name of {module.name} is taken, by a plugin's or somebody's import: {error}"
                ) from error
