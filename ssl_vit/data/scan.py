"""A quick look at a source: what types, how much, how large the images are. Needs no torch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from ssl_vit.data.bad import printable
from ssl_vit.data.measure import Looked, look
from ssl_vit.data.sources import Source


def scan(source: Source, looked: Looked | None = None) -> dict[str, Any]:
    """Counts, bytes, and the sides of at most 256 evenly spaced images, pixels.

    ``sides`` holds {min, median, max} of the short and of the long side, and is None where no header could be read;
    ``modes`` counts Pillow's modes, of images of 8 bits, and types of values, ``stacks`` TIFF files of several pages;
    ``unreadable`` names the files of the sample whose header could not be read. ``bytes`` is None where not known.
    looked: what is known of the headers already.
    """
    looked = looked or look(source)
    sizes = [(said.height, said.width) for said in looked.headers]
    return {
        "images": len(source),
        "bytes": source.fingerprint.get("bytes"),
        "types": source.types,
        "classes": len(source.classes),
        "skipped": source.skipped,
        "sampled": looked.sampled,
        "unreadable": [f"{printable(source.name(index))}: {reason}" for index, reason in looked.bad],
        "modes": dict(Counter(said.words for said in looked.headers).most_common()),
        "stacks": sum(said.pages for said in looked.headers),
        "sides": _sides(np.sort(np.array(sizes), axis=1)) if sizes else None,
    }


def _sides(sizes: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, dict[str, int]]:
    names = ("short", "long")
    return {
        name: {"min": int(side.min()), "median": int(np.median(side)), "max": int(side.max())}
        for name, side in zip(names, sizes.T, strict=True)
    }
