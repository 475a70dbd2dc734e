"""The settings of a score that trains the same learner from scratch and from the weights. Imports no torch."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from ssl_vit.eval.kind import AtLeastOne, Number, Options, Seed
from ssl_vit.settings import Count, Positive


def _path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _different(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("different numbers")
    return seeds


AutoWord = Literal["auto"]
Seeds = Annotated[AtLeastOne[Seed], AfterValidator(_different)]
Percent = Annotated[float, Field(gt=0, le=100)]
Copies = Annotated[int, Field(ge=1, le=4)]
Shared = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1), BeforeValidator(_path)]


class PairOptions(Options):
    """These settings say how the learners of a comparison learn, both alike."""

    seeds: Seeds = (0, 1, 2)
    """Seeds; each is one run from scratch and one from the weights."""
    share: AtLeastOne[Percent] = (100.0,)
    """Part of train's images that is learnt from, in percent; each is scored."""
    steps: Number[Count] | AutoWord = "auto"
    """Steps of a run; auto: 24 passes over its images, 500 to 20,000 steps."""
    size: Number[Count] | AutoWord = "auto"
    """Side of the canvas that images are put on, in pixels; auto: as the images are, 640 at most."""
    batch: Number[Count] = 8
    """Images a step."""
    lr: Number[Positive] | AutoWord = "auto"
    """Peak learning rate of what stands on the backbone; auto: 1e-3, of a transformer of queries 2e-4."""
    backbone_lr: Number[Positive] | AutoWord = "auto"
    """Peak learning rate of the backbone in both; auto: as --lr."""
    composite: Number[Copies] = 1
    """So many copies of the backbone, each fed with what the one before it saw (CBNetV2, arXiv 2107.00420); 1: none."""
    composite_shared: Number[Shared] = 0
    """First stages that the copies of a composite share."""
    train_images: Text = "auto"
    """Folder of the images of a COCO .json given as --train; auto: that of the file."""
    val_images: Text = "auto"
    """Likewise, of --val."""
