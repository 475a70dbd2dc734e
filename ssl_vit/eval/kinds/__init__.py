"""Every kind of score by name: a new one is one file, here or anywhere. Imports no torch."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TypeVar

from ssl_vit.errors import UserError
from ssl_vit.eval.kind import ScoreKind
from ssl_vit.spelling import did_you_mean

Kind = TypeVar("Kind", bound=type[ScoreKind])

_ABOVE = {"sharpness": "ssl_vit.run.sharpness"}  # of a run's own loss: in the room that knows its method
_OURS = _ABOVE.keys() | {
    module.name for module in pkgutil.iter_modules(__path__)
}  # a file each, imported when asked for
_REGISTERED: dict[str, type[ScoreKind]] = {}


def register_kind(name: str) -> Callable[[Kind], Kind]:
    """A decorator that makes a subclass of ``ScoreKind`` known as the kind of score of this name.

    Raises:
        UserError: the name is taken.
    """

    def register(kind: Kind) -> Kind:
        here = kind.__module__ == _home(name)
        if name in _REGISTERED or (name in _OURS and not here):
            raise UserError(f"{kind.__module__}: there is a score {name!r} already; register it by another name")
        _REGISTERED[name] = kind
        kind.name = name
        return kind

    return register


def list_kinds() -> list[str]:
    """Names of all kinds of score, sorted.

    >>> "knn" in list_kinds()
    True
    """
    return sorted(_OURS | _REGISTERED.keys())


def kind_class(name: str) -> type[ScoreKind]:
    """The class of a kind of score, found without importing torch; UserError with the nearest name if there is none.

    >>> kind_class("knn")(k=(5,)).values()["k"]
    (5,)
    """
    if name in _OURS:
        importlib.import_module(_home(name))
    if name not in _REGISTERED:
        raise UserError(f"unknown score {name!r}; {did_you_mean(name, list_kinds())}; see ssl-vit eval --help")
    return _REGISTERED[name]


def _home(name: str) -> str:
    """The module of a kind of ours."""
    return _ABOVE.get(name, f"{__name__}.{name}")
