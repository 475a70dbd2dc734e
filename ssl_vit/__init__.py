"""Self-supervised pretraining for any vision backbone: pretrain, see whether it learns, score, export."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Looked up when first used, so that `import ssl_vit` and `ssl-vit --help` load neither torch nor timm.
_HOMES = {
    "RunConfig": "ssl_vit.config:RunConfig",
    "UserError": "ssl_vit.errors:UserError",
    "as_backbone": "ssl_vit.backbones:as_backbone",
    "compare": "ssl_vit.eval.compare:compare",
    "create_backbone": "ssl_vit.backbones:create_backbone",
    "embed": "ssl_vit.eval.embed:embed",
    "evaluate": "ssl_vit.eval.api:evaluate",
    "export_run": "ssl_vit.export.api:export",  # not "export": that is the package beside it
    "list_backbones": "ssl_vit.backbones:list_backbones",
    "list_methods": "ssl_vit.methods:list_methods",
    "load_plugin": "ssl_vit.plugins:load_plugin",
    "load_config": "ssl_vit.config:load_config",
    "load_weights": "ssl_vit.checkpoints.load:load_weights",
    "pretrain": "ssl_vit.run.pretrain:pretrain",
    "replay_step": "ssl_vit.run.replay:replay_step",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ssl_vit' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
