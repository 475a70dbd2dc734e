"""The self-supervised methods, ours and yours, which all come in by the one door of ``ssl_vit.registry``.

Ours are found by file name: ``NAME_config.py`` (no torch) beside ``NAME.py`` (the loss).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ssl_vit.errors import UserError
from ssl_vit.registry import METHODS, MethodEntry, said
from ssl_vit.spelling import did_you_mean

if TYPE_CHECKING:
    from ssl_vit.methods.base_config import Choices, MethodConfig
    from ssl_vit.methods.method import Method

RECIPE = ("backbone", "method", "optim", "train")  # sections in which a recipe decides what is still "auto"


def list_methods() -> list[str]:
    """Names of all methods, sorted: ours, those of installed packages and those of plugins.

    >>> "dino" in list_methods()
    True
    """
    return METHODS.names()


def config_class(name: str) -> type[MethodConfig]:
    """The ``Config`` of a method; for ours and for any in two files without importing torch.

    Raises:
        UserError: there is no such method, or what is registered as its configuration can't be one.
    """
    entry = METHODS.find(name)
    if name not in METHODS.inside:
        _check_config(entry)
    return entry.config


def method_class(name: str) -> type[Method]:
    """The ``Method`` of that name (imports torch).

    Raises:
        UserError: there is no such method, its file can't be imported, or what is registered is no Method.
    """
    entry = METHODS.find(name)
    found = entry.loss if not isinstance(entry.loss, str) else _imported(entry, entry.loss)
    from ssl_vit.methods.method import Method

    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"{entry.origin}: {name!r} is registered with {found!r}, expected a class of ssl_vit's Method")
    return found


def check_recipe(name: str, choices: Choices, tree: Mapping[str, Mapping[str, Any]]) -> None:
    """UserError where a method's ``choose`` does not decide a setting that is "auto", or decides one that isn't there.

    tree: the settings by section, as far as they were decided before.
    """
    where = METHODS.find(name).origin
    place = f"{where.file or where.module}: choose() of {name!r}"
    known = {f"{section}.{key}": value for section in RECIPE for key, value in tree[section].items()}
    for key in choices:
        if key not in known:
            raise UserError(f"{place} gives a value for {key}, which is no setting; {did_you_mean(key, known)}")
    for key, value in known.items():
        if value == "auto" and key not in choices and not key.startswith("train."):  # these are decided beside it
            raise UserError(
                f'{place} gives no value for {key}, which is "auto"; add "{key}": (value, "why") to what it returns, '
                f"or set it with --set {key}=…"
            )


def method_name(method: str | type[Method]) -> str:
    """The name of a method that is given by it or by its class.

    Raises:
        UserError: a class that isn't registered.
    """
    if isinstance(method, str):
        return method
    place = f"{method.__module__}:{method.__qualname__}"
    for name in [*METHODS.entries, *METHODS.inside]:
        if METHODS.find(name).loss in (method, place):
            return name
    raise UserError(
        f"{place} is not registered; decorate it with ssl_vit.registry's @register_method(…, config=Config)"
    )


def _imported(entry: MethodEntry, place: str) -> object:
    """What "module:Class" says."""
    module, _, thing = place.partition(":")
    try:
        return getattr(importlib.import_module(module), thing)
    except UserError:
        raise
    except Exception as error:  # whatever a stranger's file raises
        if entry.name in METHODS.inside:
            raise
        raise UserError(f"{entry.origin}: loss={place!r} can't be imported: {said(error)}; mend it") from error


def _check_config(entry: MethodEntry) -> None:
    """UserError where a stranger's configuration lacks what every one has."""
    from ssl_vit.methods.base_config import MethodConfig

    config, name = entry.config, entry.name
    if not (isinstance(config, type) and issubclass(config, MethodConfig)):
        raise UserError(
            f"{entry.origin}: {name!r} is registered with the configuration {config!r}, expected a class of "
            "ssl_vit.methods.base_config.MethodConfig"
        )
    if config.model_fields["name"].default != name:
        raise UserError(
            f"{entry.origin}: registers {name!r}, and its configuration is not called so; write "
            f'name: Literal["{name}"] = "{name}" in {config.__name__}'
        )
    for fact in ("idea", "needs", "choose_when"):
        if not isinstance(getattr(config, fact, None), str):
            raise UserError(f"{entry.origin}: {config.__name__} does not say its {fact}; add {fact}: ClassVar[str] = …")
    for function in ("choose", "views"):
        if getattr(config, function) is getattr(MethodConfig, function):
            raise UserError(f"{entry.origin}: {config.__name__} has no {function}(); see MethodConfig.{function}")
