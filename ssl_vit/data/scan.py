"""A quick look at a source: what types, how much, how large the images are. Needs no torch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from ssl_vit.data.bad import printable
from ssl_vit.data.decode import BadImage, image_header
from ssl_vit.data.sources import Source

SAMPLE = 256  # images whose header is read


def scan(source: Source) -> dict[str, Any]:
    """Counts, bytes, and the sides of at most 256 evenly spaced images, pixels.

    ``sides`` holds {min, median, max} of the short and of the long side, and is None where no header could be read;
    ``unreadable`` names the files of the sample whose header could not, ``modes`` counts Pillow's modes in it.
    ``bytes`` is None where they are not known.
    """
    chosen = np.unique(np.linspace(0, len(source) - 1, SAMPLE).round().astype(int)).tolist()
    sizes, unreadable, modes = [], [], Counter[str]()
    for index in chosen:
        try:
            height, width, mode = image_header(source.path(index))
        except BadImage as error:
            unreadable.append(f"{printable(source.name(index))}: {error.reason}")
            continue
        sizes.append((height, width))
        modes[mode] += 1
    return {
        "images": len(source),
        "bytes": source.fingerprint.get("bytes"),
        "types": source.types,
        "classes": len(source.classes),
        "skipped": source.skipped,
        "sampled": len(chosen),
        "unreadable": unreadable,
        "modes": dict(modes.most_common()),
        "sides": _sides(np.sort(np.array(sizes), axis=1)) if sizes else None,
    }


def _sides(sizes: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, dict[str, int]]:
    names = ("short", "long")
    return {
        name: {"min": int(side.min()), "median": int(np.median(side)), "max": int(side.max())}
        for name, side in zip(names, sizes.T, strict=True)
    }
