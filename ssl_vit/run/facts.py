"""What is known of a run before anything is decided: its images and the machine."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np

from ssl_vit import device
from ssl_vit.backbones.backbone import Colour
from ssl_vit.config import DataConfig
from ssl_vit.data.decode import BadImage
from ssl_vit.data.measure import ORDINARY, Measured, look, measure, together
from ssl_vit.data.scan import scan
from ssl_vit.data.sources import Source
from ssl_vit.errors import UserError
from ssl_vit.training.compiler import can_compile

_OF_VAL = 64  # headers that are read of images to score on
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Facts:
    """What is known before anything is decided."""

    images: int
    side: int  # median short side, pixels
    colours: Callable[[], tuple[Colour, Colour]]  # mean and deviation, measured on the first call: it decodes images
    gpus: int
    cpus: int
    bfloat16: bool  # whether it is quicker than float32
    numba: bool = False  # whether it is installed
    compiler: bool = False  # whether torch.compile can write kernels for the GPUs
    measured: Measured = ORDINARY  # how the values of the images are read


def gather_facts(source: Source, data: DataConfig, val: Source | None = None) -> Facts:
    """What some images and the devices say; UserError where no image of the sample can be read."""
    looked = look(source)
    scanned = scan(source, looked)
    if (sides := scanned["sides"]) is None:
        first = next(iter(scanned["unreadable"]), "there is none")
        raise UserError(f"{source.root}: none of the images looked at could be read ({first}); check the files")
    measured = measure(
        together([looked] if val is None else [looked, look(val, _OF_VAL)]), data.range, data.bands, data.max_bad
    )
    return Facts(
        images=len(source),
        side=sides["short"]["median"],
        colours=cache(partial(_colours, replace(source, pixels=measured.pixels))),
        gpus=device.gpus(),
        cpus=os.cpu_count() or 1,
        bfloat16=device.bfloat16_is_fast(),
        numba=importlib.util.find_spec("numba") is not None,
        compiler=can_compile(),
        measured=measured,
    )


def _colours(source: Source, sample: int = 128) -> tuple[Colour, Colour]:
    """Mean and deviation of red, green, blue over evenly spaced images, in [0, 1], rounded to be read by people."""
    sums, squares, pixels = np.zeros(3), np.zeros(3), 0
    for index in np.unique(np.linspace(0, len(source) - 1, sample).round().astype(int)).tolist():
        try:
            image = source.read(index, want=224).reshape(-1, 3).astype(np.float64) / 255
        except BadImage:
            continue  # named when the run reads it
        sums, squares, pixels = sums + image.sum(0), squares + np.square(image).sum(0), pixels + len(image)
    if not pixels:
        return IMAGENET_MEAN, IMAGENET_STD
    mean = sums / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 1e-4))
    return tuple(mean.round(3).tolist()), tuple(std.round(3).tolist())
