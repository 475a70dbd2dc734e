"""Images in a fixed order, wherever they are. Opens none and imports no torch."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ssl_vit.data.caps import MAX_PIXELS
from ssl_vit.data.decode import Place, decode
from ssl_vit.data.values import Pixels
from ssl_vit.errors import UserError

EXTENSIONS = ("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "bmp", "dib", "tif", "tiff", "gif")

UNNAMED = "without extension"

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
    sizes: NDArray[np.int64] = field(repr=False)  # in bytes, 0 where not known
    times: NDArray[np.int64] = field(repr=False)  # of the last change of the file or archive, ns; 0 where not known
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
            f"add images, or lower the batch size (train.batch_size; --batch of a score) to {len(source)} or less"
        )


def build_source(
    root: str,
    found: list[ImageFile],
    skipped: Counter[str],
    times: Sequence[int] | NDArray[np.int64] | None = None,
    damage: tuple[str, ...] = (),
    lost: float = 0.0,
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
        types=dict(Counter(extension(name) or UNNAMED for name in names).most_common()),
        skipped=dict(skipped),
        fingerprint={"images": len(found), "bytes": sum(size for _, size in found), "sha256": digest.hexdigest()},
        damage=damage,
        lost=lost,
        sizes=np.array([size for _, size in found], dtype=np.int64),
        times=np.zeros(len(found), np.int64) if times is None else np.array(times, dtype=np.int64),
        _names=b"".join(names),
        _ends=np.cumsum([len(name) for name in names], dtype=np.int64),
        _labels=np.array([number[name] for name in folders] if labelled else [], dtype=np.int32),
    )


_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_OUTER, _INNER = ("gz", "bz2", "xz", "zst", "lz4"), ("tar", "nii")  # of names as a.tar.gz
BEGINNING = 12  # bytes of a file that tell what it is


def begins_as_image(beginning: bytes) -> bool:
    """Tell from a file's first bytes whether it is of a kind that ``decode`` reads."""
    bitmap = beginning[:2] == b"BM" and beginning[6:10] == bytes(4)
    webp = beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP"
    return beginning.startswith(_BEGINNINGS) or bitmap or webp


def has_own_extension(name: bytes) -> bool:
    """Tell whether a name says what the file is: "README" and "scan.0001" do not, and their first bytes are asked."""
    kind = extension(name)
    return bool(kind) and not kind.isdigit()


def kind_of(name: bytes) -> str:
    """Name the kind of a file that is no image, as it is counted.

    >>> kind_of(b"a/notes.TXT"), kind_of(b"a.tar.gz"), kind_of(b"README"), kind_of(b"scan.0001")
    ('.txt files', '.tar.gz files', 'files without extension', 'files without extension')
    """
    if not has_own_extension(name):
        return f"files {UNNAMED}"
    inner = extension(os.path.splitext(name)[0]) if extension(name) in _OUTER else ""
    return f".{inner}.{extension(name)} files" if inner in _INNER else f".{extension(name)} files"


def extension(name: bytes) -> str:
    """Return the extension of a file's name, in small letters, without the dot."""
    return os.fsdecode(os.path.splitext(name)[1][1:].lower())
