"""These networks of detectors can embed their objects, and so be pretrained."""

from __future__ import annotations

import importlib
from typing import Any, TypeAlias

from ssl_vit.detectors.deformable_detr import DeformableDETR
from ssl_vit.detectors.detr import DETR
from ssl_vit.detectors.table import DETECTORS, PretrainableName

Pretrainable: TypeAlias = DETR | DeformableDETR
"""A network that can be pretrained."""


def network_class(name: PretrainableName) -> type[Pretrainable]:
    """Return the class of a detector's network, made as ``(backbone, classes, **settings)``; KeyError for others."""
    home = DETECTORS[name].network
    if home is None:
        raise KeyError(name)
    network: type[Pretrainable] = lookup(home)
    return network


def lookup(home: str) -> Any:
    """Import "module:name" and return what it is."""
    module, _, attribute = home.partition(":")
    return getattr(importlib.import_module(module), attribute)
