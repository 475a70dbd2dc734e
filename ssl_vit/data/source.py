"""Images in a fixed order, wherever they are. Opens none and imports no torch."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ssl_vit.data.caps import MAX_PIXELS
from ssl_vit.data.decode import Place, decode
from ssl_vit.data.values import Pixels
from ssl_vit.errors import UserError

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif")

ImageFile = tuple[bytes, int]  # path relative to the root, size in bytes


@dataclass(frozen=True, eq=False)
class Source:
    """A source is image files in a fixed order, with labels where sub-folders give them.

    Names live in one block of bytes: two million `str` objects would be copied into every forked worker, as counting
    references to them writes to their memory.
    """

    root: str
    classes: tuple[str, ...]  # empty without labels
    types: dict[str, int]  # extension -> files
    skipped: dict[str, int]  # reason -> entries that were left out
    fingerprint: dict[str, int | str]  # images, bytes if known, sha256 of names and sizes
    damage: tuple[str, ...]  # archives of which a part can't be read, and why
    lost: float  # the share of the bytes that is in such parts
    _names: bytes = field(repr=False)
    _ends: NDArray[np.int64] = field(repr=False)
    _labels: NDArray[np.int32] = field(repr=False)  # empty without labels
    pixels: Pixels = field(default=Pixels(), kw_only=True)  # how values become 8 bits, the same for all images

    def __len__(self) -> int:
        return len(self._ends)

    def name(self, index: int) -> str:
        """Return the path relative to the root; bytes that are not UTF-8 come as surrogates, as in `os.fsdecode`."""
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._names[start : int(self._ends[index])])

    def path(self, index: int) -> Place:
        """Return what `decode` opens."""
        return os.path.join(self.root, self.name(index))

    def read(self, index: int, max_pixels: float = MAX_PIXELS, want: int | None = None) -> NDArray[np.uint8]:
        """Decode an image to RGB, uint8 [H, W, 3], as ``decode`` does. Raises BadImage."""
        return decode(self.path(index), self.pixels, max_pixels, want)

    def label(self, index: int) -> int | None:
        """Return the number of the image's class in `classes`, None without classes."""
        return int(self._labels[index]) if self.classes else None

    @property
    def labels(self) -> NDArray[np.int32]:
        """The labels of all images are int32 [N]; empty without classes."""
        return self._labels


def require(source: Source, batch_size: int) -> None:
    """Raise UserError if the images do not fill one (global) batch."""
    if len(source) < batch_size:
        raise UserError(
            f"{source.root}: {len(source)} images are fewer than a batch of {batch_size}; "
            f"add images or lower the batch size to {len(source)} or less"
        )


def build_source(
    root: str, found: list[ImageFile], skipped: Counter[str], damage: tuple[str, ...] = (), lost: float = 0.0
) -> Source:
    """Make a Source of images that were found, with labels where each lies in one of several sub-folders."""
    names = [name for name, _ in found]
    digest = hashlib.sha256()
    for name, size in found:
        digest.update(name + b"\0%d\0" % size)
    folders = [name.split(b"/", 1)[0] if b"/" in name else b"" for name in names]
    classes = sorted(set(folders))
    labelled = len(classes) > 1 and not {b"", b"..", b"."} & set(classes)
    number = {name: i for i, name in enumerate(classes)}
    return Source(
        root=root,
        classes=tuple(os.fsdecode(name) for name in classes) if labelled else (),
        types=dict(Counter(extension(name) for name in names).most_common()),
        skipped=dict(skipped),
        fingerprint={"images": len(found), "bytes": sum(size for _, size in found), "sha256": digest.hexdigest()},
        damage=damage,
        lost=lost,
        _names=b"".join(names),
        _ends=np.cumsum([len(name) for name in names], dtype=np.int64),
        _labels=np.array([number[name] for name in folders] if labelled else [], dtype=np.int32),
    )


def extension(name: bytes) -> str:
    """Return the extension of a file's name, in small letters, without the dot."""
    return os.fsdecode(os.path.splitext(name)[1][1:].lower())
