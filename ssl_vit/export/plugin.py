"""Weights of a network that timm doesn't know: the same folder as for timm, which the plugin that builds it loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ssl_vit import plugins
from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.module_adapter import ModuleBackbone
from ssl_vit.export import timm
from ssl_vit.export.target import KeyPairs, Verified, frozen, probe, run_snippet, same_weights, verified


def write(backbone: AdaptedBackbone, folder: Path, description: Mapping[str, Any]) -> KeyPairs:
    """model.safetensors (the author's key names), config.json with what registered the network, and SHA256SUMS."""
    return timm.write(backbone, folder, description)


def snippet(folder: Path | str, backbone: AdaptedBackbone) -> str:
    """The backbone, of which ``model`` is the author's module, by this package and what registered the network."""
    assert isinstance(backbone, ModuleBackbone)
    origin = backbone.entry.origin
    known = f"# after ssl_vit.as_backbone(module, …, name={backbone.info.name!r})"
    if origin.file:
        known = plugins.import_line(origin.module)
    place = str(Path(folder).absolute())
    load = f"from ssl_vit.checkpoints.load import backbone_of_file\nbackbone = backbone_of_file({place!r}).eval()"
    return f"{known}\n{load}"


def verify(folder: Path | str, backbone: AdaptedBackbone) -> Verified:
    """Build the network anew by what registered it, and compare weights, pooled features and patches.

    Raises:
        UserError: the files are not those that were written.
        RunFailed: it cannot load them, or a weight or an output differs.
    """
    consumer = plugins.title(backbone.architecture()["plugin"])
    if Path(folder).is_dir():
        timm.check_sums(Path(folder))
    loaded, ours = run_snippet(snippet(folder, backbone), consumer)["backbone"], frozen(backbone)
    same_weights(consumer, ours.model.state_dict(), loaded.model.state_dict())
    images = probe(backbone)
    with torch.inference_mode():
        return verified(consumer, ours(images), loaded(images))
