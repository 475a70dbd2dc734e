"""A detector lies in one file of safetensors: its weights, and in the file's metadata how to build it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ssl_vit.backbones.registry import create_backbone
from ssl_vit.checkpoints.description import read_description
from ssl_vit.checkpoints.reader import METADATA, read_document, tensors
from ssl_vit.detectors.networks import Pretrainable, network_class
from ssl_vit.errors import UserError

FILE = "detector.safetensors"
"""The file's name in the export of a run."""


def save_detector(detector: Pretrainable, path: Path, config: Mapping[str, Any]) -> None:
    """Write all of a detector's weights to a file; config: timm's, of its backbone."""
    said = {"name": detector.name, "num_classes": detector.num_classes, "settings": detector.settings}
    state = {name: value.detach().cpu().contiguous() for name, value in detector.state_dict().items()}
    save_file(state, path, metadata={"format": "pt", "detector": json.dumps(said), "config": json.dumps(config)})


def detector_of(run: Path | str) -> Path | None:
    """Find the file of the detector that a run or its export holds; None where it pretrained a backbone alone."""
    places = (Path(run) / "export" / FILE, Path(run) / FILE)
    return next((place for place in places if place.is_file()), None)


def load_detector(path: Path | str, num_classes: int | None = None) -> Pretrainable:
    """Load the detector in a file that :func:`save_detector` has written.

    num_classes: make it ready to be fine-tuned on so many classes, with a new class head and without object embeddings,
    as the official code does (arXiv 2106.04550); all other weights are the file's, and none may be missing. The
    backbone's info has the mean and deviation of the images that it was trained on.

    Raises:
        UserError: no such file, another kind of file, or weights that are not the detector's that the file describes.
    """
    file, document = read_document(path)
    description, text = read_description(file, document), (document.get(METADATA) or {}).get("detector")
    if description is None or text is None:
        raise UserError(f"{file}: holds no detector; give RUN/export/{FILE} of a run of detreg")
    backbone = create_backbone(description.name, image_size=description.size, model_args=description.model_args)
    backbone.info = replace(backbone.info, mean=description.mean, std=description.std)
    state = tensors(document)
    try:
        said = json.loads(text)
        settings = dict(said["settings"])
        if num_classes is not None:
            settings["embedding"] = None
            state = {name: value for name, value in state.items() if not name.startswith("feature_embed.")}
        detector = network_class(said["name"])(backbone, said["num_classes"], **settings)
        detector.load_state_dict(state, strict=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        what = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: not the detector that it describes ({what}); export the run again") from None
    if num_classes is not None:
        detector.forget_classes(num_classes)
    return detector
