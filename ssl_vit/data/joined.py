"""Several sources become one: the images of the first, then those of the second, and so on."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ssl_vit.data.decode import Place
from ssl_vit.data.source import Source


@dataclass(frozen=True, eq=False)
class JoinedSource(Source):
    """The images lie in several sources; `name` begins with what its source is called."""

    parts: tuple[Source, ...]
    _starts: NDArray[np.int64] = field(repr=False)  # the number of each part's first image

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def _found(self, index: int) -> tuple[Source, int]:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.parts[part], index - int(self._starts[part])

    def name(self, index: int) -> str:
        """Return the path of a file of a folder; else what the source is called, and the name in it."""
        part, inside = self._found(index)
        name = part.name(inside)
        return os.path.join(part.root, name) if type(part) is Source else f"{part.root}: {name}"

    def path(self, index: int) -> Place:
        """Return what `decode` opens."""
        part, inside = self._found(index)
        return part.path(inside)


def join(parts: Sequence[Source]) -> JoinedSource:
    """Make one source of several; it has classes if all have, and those of one name are one class."""
    labelled = all(part.classes for part in parts)
    classes = tuple(sorted({name for part in parts for name in part.classes})) if labelled else ()
    number = {name: i for i, name in enumerate(classes)}
    labels = [np.array([number[name] for name in part.classes], np.int32)[part.labels] for part in parts if labelled]
    weights = [max(int(part.fingerprint.get("bytes", 0)), 1) for part in parts]
    digest = hashlib.sha256("\n".join(str(part.fingerprint["sha256"]) for part in parts).encode()).hexdigest()
    known = {"bytes": sum(weights)} if all("bytes" in part.fingerprint for part in parts) else {}
    return JoinedSource(
        root=", ".join(part.root for part in parts),
        classes=classes,
        types=dict(sum((Counter(part.types) for part in parts), Counter[str]()).most_common()),
        skipped=dict(sum((Counter(part.skipped) for part in parts), Counter[str]())),
        fingerprint={"images": sum(map(len, parts)), **known, "sha256": digest},
        damage=tuple(text for part in parts for text in part.damage),
        lost=sum(part.lost * weight for part, weight in zip(parts, weights, strict=True)) / sum(weights),
        sizes=np.concatenate([part.sizes for part in parts]),
        times=np.concatenate([part.times for part in parts]),
        _names=b"",  # the parts have them
        _ends=np.empty(0, np.int64),
        _labels=np.concatenate(labels) if labels else np.empty(0, np.int32),
        parts=tuple(parts),
        _starts=np.cumsum([0, *map(len, parts[:-1])]),
    )
