"""The images that a run's pictures are of: some of its own, spread evenly, read once and kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_vit.data.bad import printable
from ssl_vit.data.batch import to_views
from ssl_vit.data.evalset import EvalDataset
from ssl_vit.data.loader import Views
from ssl_vit.data.plan import ViewPlan
from ssl_vit.data.sources import Source
from ssl_vit.report import kept, pixels

FEWEST, MOST = 24, 512  # images
MEMORY = 64 << 20  # bytes of them that are kept
SECONDS = 30.0  # for reading them; what isn't read by then is done without
SHOWN = 8  # of which the larger pictures are
QUERIES = 8  # whose neighbours are shown
_SHARE = 300  # images that the run sees for each that a picture looks at: so all pictures cost less than 1 % of a run
_CROPS = 4  # of a kind of view that are shown
_STREAM = (1 << 40) + 1  # an "epoch" that no run comes to, for the views' random numbers


def sample_size(seen: int, images: int, side: int) -> int:
    """How many images the pictures of a run are of that sees so many in all.

    >>> sample_size(1_000, 5_000, 32), sample_size(60_000, 5_000, 32), sample_size(10**8, 10**6, 224)
    (24, 200, 445)
    """
    return min(images, max(FEWEST, min(MOST, seen // _SHARE, MEMORY // (3 * side * side))))


def picture_times(seen: int, count: int) -> int:
    """How often pictures of so many images are made in a run that sees so many, ten times at most.

    A step costs six passes an image or more, so this is 1 % of them; the last time is always.

    >>> picture_times(240, 24), picture_times(2_000, 24), picture_times(10**6, 512)
    (1, 5, 10)
    """
    return max(1, min(10, seen * 6 // (100 * count)))


@dataclass(frozen=True)
class Sample:
    """Images with their names and, where the run has them, classes; their pixels are as scores see them."""

    index: list[int]  # in the source
    names: list[str]
    labels: list[int]  # -1 without
    images: Tensor  # uint8 [N, 3, S, S]

    @property
    def shown(self) -> list[int]:
        """Rows of the images that larger pictures are of, spread over the sample."""
        return spread(len(self.index), SHOWN)


def spread(count: int, wanted: int) -> list[int]:
    """Rows that lie evenly among so many; the middle of each part, so that classes in order all have a chance."""
    parts = min(count, wanted)
    return [int((place + 0.5) * count / parts) for place in range(parts)]


def read_sample(source: Source, side: int, count: int) -> Sample:
    """Read so many images of a source; those that can't be read are done without."""
    wanted = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int)).tolist()
    np.random.default_rng(0).shuffle(wanted)  # so that those that time allows are spread, too
    dataset, found, begun = EvalDataset(source, side), dict[int, tuple[Tensor, int]](), time.monotonic()
    for index in wanted:
        read = dataset[index]
        if read.image is not None:
            found[index] = read.image, read.label
        if time.monotonic() - begun > SECONDS:
            break
    order = sorted(found)
    names = [printable(source.name(index)) for index in order]
    images = torch.stack([found[index][0] for index in order]) if order else torch.empty(0, 3, side, side).byte()
    return Sample(order, names, [found[index][1] for index in order], images)


def keep_sample(run: Path, sample: Sample, classes: Sequence[str]) -> None:
    """Keep names, classes and small pictures."""
    found = {"names": sample.names, "labels": sample.labels, "classes": [printable(name) for name in classes]}
    kept.put(run, kept.SAMPLE, found | {"shown": sample.shown, "index": sample.index})
    pictures = [as_picture(image) for image in sample.images]
    tiles = pixels.sheet([pixels.shrunk(picture, kept.TILE) for picture in pictures], kept.ROW)
    pixels.write(tiles, run / kept.FOLDER / kept.TILES)
    photos = [pixels.shrunk(pictures[row], kept.PHOTO) for row in sample.shown]
    pixels.write(pixels.strip(photos), run / kept.FOLDER / kept.PHOTOS)


def as_picture(image: Tensor) -> NDArray[np.uint8]:
    """[3, S, S] uint8 as [S, S, 3]."""
    return image.permute(1, 2, 0).contiguous().numpy()


def restored_colours(views: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised images [N, 3, S, S] as uint8."""
    shape = (1, 3, 1, 1)
    unit = views.float().cpu() * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    return (unit.clamp(0, 1) * 255).round().byte()


def keep_views(
    run: Path, source: Source, plan: ViewPlan, sample: Sample, seed: int, colours: Sequence[Sequence[float]]
) -> None:
    """Keep the very kind of views that a step learns from, of a few images: a strip for each view."""
    rows = sample.shown
    few = ViewPlan(tuple(replace(view, count=min(view.count, _CROPS)) for view in plan.views))
    batch = Views(source, few, seed)[[(_STREAM, sample.index[row]) for row in rows]]
    if not len(batch.pixels):
        return
    found, names, (mean, std) = list[Tensor](), list[str](), colours
    for view, made in zip(few.views, to_views(batch, mean, std, "cpu"), strict=True):
        crops = restored_colours(made, mean, std).view(view.count, len(rows), 3, view.size, view.size)
        found += crops
        names += [f"{view.name}, {view.size} px"] * view.count
    for place, crop in enumerate(found):
        shown = [pixels.shrunk(as_picture(image), kept.PHOTO) for image in crop]
        pixels.write(pixels.strip(shown), run / kept.FOLDER / f"view-{place}.jpg")
    kept.put(run, kept.VIEWS, {"views": names})
