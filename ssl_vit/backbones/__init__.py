"""Vision backbones, timm's families and our own, stand behind one contract.

The names below are looked up when first used, so that a family's file can import its neighbours.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Backbone": "backbone",
    "BackboneInfo": "backbone",
    "Features": "backbone",
    "BackboneRow": "registry",
    "as_backbone": "module_adapter",
    "backbone_info": "registry",
    "backbone_name": "registry",
    "create_backbone": "registry",
    "list_backbones": "registry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
