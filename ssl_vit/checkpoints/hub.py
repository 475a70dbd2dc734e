"""Weights on a hub, ``hf-hub:owner/name`` or ``hf-hub:owner/name@revision``: the one place that uses the network."""

from __future__ import annotations

from pathlib import Path

from ssl_vit.errors import UserError

_PREFIX = "hf-hub:"  # as timm spells it
_SAYS = ["config.json", "preprocessor_config.json"]  # which network it is, and how its images are normalised


def is_hub_id(path: str | Path) -> bool:
    """Tell whether a text names weights on a hub, and no file.

    >>> is_hub_id("hf-hub:timm/vit_small_patch16_224.dino"), is_hub_id("timm/vit_small_patch16_224.dino")
    (True, False)
    """
    return str(path).startswith(_PREFIX)


def fetch(hub_id: str | Path) -> Path:
    """Return the folder of a repository in huggingface_hub's cache, brought there where it is not yet.

    Raises:
        UserError: no network and nothing in the cache, or no such repository or revision.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    name, _, revision = str(hub_id).removeprefix(_PREFIX).partition("@")
    try:
        for weights in ("model.safetensors", "pytorch_model.bin"):
            folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=[*_SAYS, weights]))
            if (folder / weights).is_file():
                break
    except (HfHubHTTPError, OSError, ValueError) as error:
        said = " ".join(str(error).split())[:150]
        raise UserError(f"{hub_id}: cannot be had ({said}); check the name and the network, or give a file") from error
    return folder
