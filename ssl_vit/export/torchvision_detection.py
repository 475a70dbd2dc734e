"""Any backbone stands under torchvision's Faster R-CNN."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.detectors.fpn import BackboneWithFPN
from ssl_vit.errors import RunFailed
from ssl_vit.export import timm
from ssl_vit.export.target import KeyPairs, Verified, frozen, probe, run_snippet, verified

_RATIOS = (0.5, 1.0, 2.0)  # height over width of anchors


def faster_rcnn(folder: Path | str, num_classes: int, **options: Any) -> FasterRCNN:
    """Build a Faster R-CNN (arXiv 1506.01497) on the backbone of an export; all else in it is still to be trained.

    num_classes: with the background as one of them; options: those of torchvision's FasterRCNN. It takes images in
    [0, 1] of any size, and gives boxes in pixels.
    """
    backbone = timm.read_export(folder)
    info, body = backbone.info, BackboneWithFPN(backbone)
    levels = len(body.strides)
    options.setdefault(
        "rpn_anchor_generator", AnchorGenerator(tuple((32 * 2**i,) for i in range(levels)), (_RATIOS,) * levels)
    )
    options |= {"image_mean": info.mean, "image_std": info.std}
    if info.any_size:
        options["size_divisible"] = math.lcm(32, info.multiple)
    else:
        options |= {"fixed_size": info.size[::-1], "size_divisible": 1}
    return FasterRCNN(body, num_classes, **options)


def write(backbone: AdaptedBackbone, folder: Path, description: Mapping[str, Any]) -> KeyPairs:
    """Write timm's folder, which ``faster_rcnn`` reads; the detector's names are timm's after ``backbone.body.``."""
    return [(key, f"backbone.body.{key}") for key, _ in timm.write(backbone, folder, description)]


def snippet(folder: Path, backbone: AdaptedBackbone) -> str:
    """Return the Python of a Faster R-CNN with two classes, of which one is the background."""
    return "\n".join(
        [
            "from ssl_vit.export.torchvision_detection import faster_rcnn",
            f"model = faster_rcnn({str(Path(folder).absolute())!r}, num_classes=2)",
        ]
    )


def verify(folder: Path, backbone: AdaptedBackbone) -> Verified:
    """Run the snippet, compare the maps inside with ours, and let the detector look at an image."""
    consumer = f"torchvision {torchvision.__version__} (Faster R-CNN)"
    model: Any = run_snippet(snippet(folder, backbone), consumer)["model"].eval()
    model.transform.min_size, model.transform.max_size = (min(backbone.info.size),), max(backbone.info.size)  # quicker
    ours, images = BackboneWithFPN(frozen(backbone)), probe(backbone)
    with torch.inference_mode():
        found = verified(consumer, ours.maps(images), model.backbone.maps(images))
        [seen] = model([torch.rand(3, *backbone.info.size, generator=torch.Generator().manual_seed(0))])
    if not bool(torch.isfinite(seen["boxes"]).all()):
        raise RunFailed(f"{consumer} finds boxes that are not finite")
    return found
