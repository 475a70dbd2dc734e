"""Every kind of score, found by file name: a new one is one file here. Imports no torch."""

from __future__ import annotations

import importlib
import pkgutil

from ssl_vit.errors import UserError
from ssl_vit.eval.kind import KINDS, ScoreKind
from ssl_vit.wording import did_you_mean


def list_kinds() -> list[str]:
    """Names of all kinds of score, sorted.

    >>> "knn" in list_kinds()
    True
    """
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} | KINDS.keys())


def kind_class(name: str) -> type[ScoreKind]:
    """The class of a kind of score, without importing torch; UserError with the nearest name if there is none.

    >>> kind_class("knn")(k=(5,)).values()["k"]
    (5,)
    """
    if name not in KINDS and name in list_kinds():
        importlib.import_module(f"{__name__}.{name}")
    if name not in KINDS:
        raise UserError(f"unknown score {name!r}; {did_you_mean(name, list_kinds())}; see ssl-vit eval --help")
    return KINDS[name]
