"""timm gets the weights as a folder in its hub's layout, with the proof that plain timm loads it."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from ssl_vit import plugins
from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.checkpoints import sums
from ssl_vit.checkpoints.load import backbone_of_file
from ssl_vit.checkpoints.sums import CONFIG as CONFIG
from ssl_vit.checkpoints.sums import SUMS as SUMS
from ssl_vit.errors import RunFailed, UserError
from ssl_vit.export.target import WEIGHTS as WEIGHTS
from ssl_vit.export.target import KeyPairs, Verified, probe, run_snippet, weights_of
from ssl_vit.files import sha256

_TOLERANCE = 1e-5  # of the largest value


def write(backbone: AdaptedBackbone, folder: Path, description: Mapping[str, Any]) -> KeyPairs:
    """Write model.safetensors (timm's key names), config.json with the description under "ssl_vit", and SHA256SUMS."""
    settings = config(backbone, backbone.info.mean, backbone.info.std, description)
    if "plugin" in settings:
        settings["outputs"] = backbone.fingerprint()
    save_file(weights_of(backbone), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    lines = [f"{sha256(folder / name)}  {name}\n" for name in (WEIGHTS, CONFIG)]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
    return [(key, key) for key in backbone.model.state_dict()]


def config(
    backbone: AdaptedBackbone, mean: tuple[float, ...], std: tuple[float, ...], description: Mapping[str, Any]
) -> dict[str, Any]:
    """Make config.json: what is needed to build the same model, and the description under "ssl_vit"."""
    said = backbone.architecture()
    said["pretrained_cfg"] |= {"mean": list(mean), "std": list(std)}
    return said | {"ssl_vit": dict(description)}


def read_export(folder: Path | str) -> AdaptedBackbone:
    """Build the backbone of such a folder; its info has the mean, deviation and size that it was trained with.

    Raises:
        UserError: a file is missing, damaged or changed since it was written, or the weights are another model's.
    """
    check_sums(Path(folder))
    if "architecture" not in read_config(Path(folder)):
        raise UserError(f"{Path(folder) / CONFIG}: architecture is missing; expected timm's hub layout; export again")
    return backbone_of_file(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json as it is."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / CONFIG}: cannot be read ({error}); expected timm's hub layout") from None
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG}: expected a JSON object, found {type(config).__name__}")
    return config


def verify(folder: Path | str, backbone: AdaptedBackbone) -> Verified:
    """Run the snippet, and compare weights, pooled features and the last map with the backbone's.

    Raises:
        UserError: the files are not those that were written.
        RunFailed: timm cannot load them, or a weight or an output differs.
    """
    folder, source = Path(folder), backbone.architecture().get("plugin")
    consumer = f"timm {timm.__version__}" + (f" with {plugins.title(source)}" if source else "")
    check_sums(folder)
    loaded: Any = run_snippet(snippet(folder, backbone), consumer)["model"]
    ours: Any = copy.deepcopy(backbone.model).cpu().eval()  # a copy: a model in training is left as it is
    expected, found = ours.state_dict(), loaded.state_dict()
    for key in sorted(expected.keys() | found.keys()):
        if key not in expected or key not in found or not torch.equal(expected[key], found[key]):
            raise RunFailed(f"{folder}: {key} is not the same after loading with {consumer}")
    images = probe(backbone)
    with torch.inference_mode():
        difference = max(
            _difference(ours(images), loaded(images)),
            _difference(ours.forward_features(images), loaded.forward_features(images)),
        )
    if difference > _TOLERANCE:
        raise RunFailed(f"{folder}: outputs differ by {difference:.1e} after loading with {consumer}")
    return Verified(consumer, difference)


def _difference(expected: Any, found: Any) -> float:
    """Largest difference relative to the largest value, infinite for NaN; some families give several tensors."""
    if not torch.is_tensor(expected):
        return max(map(_difference, expected, found))
    difference = float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-12))
    return math.inf if math.isnan(difference) else difference


def snippet(folder: Path | str, backbone: AdaptedBackbone) -> str:
    """Return the Python that loads the folder; our own families need this package, the others timm alone."""
    path = f"local-dir:{Path(folder).absolute()}"
    lines = [
        "import timm",
        f"model = timm.create_model({path!r}, pretrained=True).eval()",
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
    ]
    return "\n".join(families_of(backbone.info.name) + lines)


def families_of(name: str) -> list[str]:
    """Return the import that registers an architecture in timm, where it is one of ours."""
    module = timm.models.model_entrypoint(name).__module__
    return [] if module.startswith("timm.") else [plugins.import_line(module)]


def check_sums(folder: Path) -> None:
    """Compare the files with SHA256SUMS where there is one, as timm writes none; UserError where they differ."""
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing; expected a folder with {WEIGHTS} and {CONFIG}")
    sums.check_sums(folder / WEIGHTS)
