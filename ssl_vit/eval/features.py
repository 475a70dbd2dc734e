"""One feature vector an image: what every score and ``embed`` stand on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import nn

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.data.augment import normalise
from ssl_vit.data.evalset import EvalBatch, EvalDataset, EvalLoader
from ssl_vit.data.sources import Source
from ssl_vit.errors import UserError


@dataclass(frozen=True)
class FeatureSet:
    """The features of a source, in the source's order, without the images that could not be read."""

    features: NDArray[np.float32]  # [N, D] as the model's own head would see them, not normalised
    labels: NDArray[np.int64]  # [N] class index; -1 where the source has no labels
    files: list[str]  # [N] names relative to the source's root
    protocol: dict[str, Any]  # how they were made


def extract(
    backbone: Backbone,
    source: Source,
    *,
    batch_size: int,
    workers: int,
    device: torch.device | str,
    image_size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> FeatureSet:
    """Pooled features of every image: shorter side to image_size x 256/224 bicubic, central crop, normalised.

    The backbone runs in evaluation mode and without gradients, and every module gets its own mode back. The same
    images and weights give the same features for any number of workers. Images that can't be read are named in the
    log and left out. mean and std are of images in [0, 1]; image_size is pixels.

    Raises:
        UserError: not one image could be read.
    """
    on_gpu = torch.device(device).type == "cuda"
    loader = EvalLoader(EvalDataset(source, image_size), batch_size, workers, pin_memory=on_gpu, max_bad=1.0)
    backbone.to(device)
    features: list[NDArray[np.float32]] = []
    labels: list[int] = []
    kept: list[int] = []
    with evaluating(backbone), torch.inference_mode():
        for batch in _progress(loader):
            images = normalise(batch.images.to(device, non_blocking=True), mean, std)
            features.append(backbone(images).pooled.float().cpu().numpy())
            labels += batch.labels.tolist()
            kept += batch.index.tolist()
    if not kept:
        raise UserError(f"{source.root}: none of the {len(source)} images could be read; see the reasons above")
    protocol = {
        "encoder": backbone.info.name,
        "pooling": pooling(backbone),
        "transform": f"shorter side to {round(image_size * 256 / 224)} bicubic antialiased, central crop {image_size}",
        "image_size": image_size,
        "mean": list(mean),
        "std": list(std),
        "images": len(kept),
        "left_out": len(source) - len(kept),
    }
    return FeatureSet(np.concatenate(features), np.array(labels), [source.name(i) for i in kept], protocol)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is in the mode it had (a frozen BatchNorm stays frozen)."""
    modes = {module: module.training for module in model.modules()}
    # Through train(): some families keep tables made from the weights while in evaluation mode and drop them there.
    model.train().eval()
    try:
        yield
    finally:
        model.train()
        for module, mode in modes.items():  # parents come before their children
            module.train(mode)


def pooling(backbone: Backbone) -> str:
    """How the model makes one vector of its last map or tokens, in timm's words ("avg", "token", …)."""
    model = getattr(backbone, "model", backbone)
    for owner in (getattr(model, "head", None), model):
        pool = getattr(owner, "global_pool", None)
        kind = pool if isinstance(pool, str) else getattr(pool, "pool_type", None)
        if kind:
            return str(kind)
    return "the model's own"


def _progress(loader: EvalLoader) -> Iterable[EvalBatch]:
    console = Console(stderr=True)
    return track(loader, "features", console=console, transient=True, disable=not console.is_terminal)
