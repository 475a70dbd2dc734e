"""The self-supervised methods, found by file name: ``NAME_config.py`` (no torch) beside ``NAME.py`` (the loss)."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from ssl_vit.errors import UserError
from ssl_vit.spelling import did_you_mean

if TYPE_CHECKING:
    from ssl_vit.methods.base_config import MethodConfig
    from ssl_vit.methods.method import Method


def list_methods() -> list[str]:
    """Names of all methods, sorted.

    >>> "dino" in list_methods()
    True
    """
    files = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name.removesuffix("_config") for name in files if name.endswith("_config") and name != "base_config")


def config_class(name: str) -> type[MethodConfig]:
    """The ``Config`` of a method, without importing torch; UserError if there is no such method."""
    config: type[MethodConfig] = importlib.import_module(f"ssl_vit.methods.{_known(name)}_config").Config
    return config


def method_class(name: str) -> type[Method]:
    """The one ``Method`` that the method's file defines (imports torch); UserError if there is no such method."""
    module = importlib.import_module(f"ssl_vit.methods.{_known(name)}")
    from ssl_vit.methods.method import Method

    found = [
        thing
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, Method) and thing.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define exactly one Method, found {len(found)}")
    return found[0]


def _known(name: str) -> str:
    names = list_methods()
    if name in names:
        return name
    raise UserError(f"unknown method {name!r}; {did_you_mean(name, names)}")
