"""Folders of images and masks, as Pascal VOC's and ADE20K's, are a source of segments: one for each class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ssl_vit.data.decode import BadImage, image_size
from ssl_vit.data.segmentation import Pair, read_mask
from ssl_vit.data.segments import Segments, SegmentSource, divided, fitting
from ssl_vit.progress import progress


@dataclass
class MaskSource(SegmentSource):
    """Masks hold the number of each pixel's class; classes are called by their numbers."""

    pairs: list[Pair] = field(default_factory=list)
    found: Counter[str] = field(default_factory=Counter)  # images that have a class
    pixels: Counter[int] = field(default_factory=Counter)  # by number, ignored ones too

    def counts(self) -> Mapping[str, int]:
        """Count the images that have each class."""
        return self.found

    def mask(self, index: int) -> Path:
        """Return a mask's file."""
        return self.pairs[index].mask

    def beside(self) -> list[Path]:
        """List the masks."""
        return [pair.mask for pair in self.pairs]

    def stored(self, index: int, size: tuple[int, int]) -> Segments:
        """Read a mask."""
        numbers = np.array([int(name) for name in self.names], np.int64)
        places, values = divided(read_mask(self.pairs[index].mask), numbers)
        return Segments(places, np.searchsorted(numbers, values), np.zeros(len(values), bool))


def open_masks(folder: Path, pairs: list[Pair], ignore: Collection[int]) -> MaskSource:
    """Look through all masks: which classes there are, and what can't be used; `ignore`: numbers that don't count."""
    source = MaskSource(folder, (), (), panoptic=False)
    with progress("masks", len(pairs)) as advance:
        for pair in pairs:
            name = os.path.relpath(pair.image, folder)
            try:
                mask = read_mask(pair.mask)
                fitting(mask.astype(np.int16), image_size(str(pair.image)), str(pair.image))
            except BadImage as error:
                source.left_out[name] = error.reason
                continue
            finally:
                advance(1)
            values, counts = np.unique(mask, return_counts=True)
            source.pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            source.found.update(str(value) for value in values.tolist() if value not in ignore)
            source.files.append(name)
            source.pairs.append(pair)
    source.names = tuple(sorted(source.found, key=int))
    source.things = (False,) * len(source.names)
    return source
