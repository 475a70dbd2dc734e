"""Images with a mask each come from folders as Pascal VOC's or ADE20K's, or from ``images`` beside ``masks``."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ssl_vit.data.bad import printable
from ssl_vit.data.caps import MAX_PIXELS
from ssl_vit.data.crops import Box, resize
from ssl_vit.data.decode import BadImage, decode, quarter_turn
from ssl_vit.data.outlines import turned_mask
from ssl_vit.data.source import EXTENSIONS
from ssl_vit.data.values import ORDINARY, Pixels
from ssl_vit.errors import UserError

if TYPE_CHECKING:
    from ssl_vit.data.segments import SegmentSource

FOLDER_PAIRS = (("JPEGImages", "SegmentationClass"), ("images", "annotations"), ("images", "masks"))
_PARTS = {
    "train": ("training", "train"),
    "val": ("validation", "val"),
}  # ADE20K's sub-folders; ours where there are any
_IMAGES = tuple(f".{extension}" for extension in EXTENSIONS)
_OTHER_MASKS = (*(ending for ending in _IMAGES if ending != ".png"), ".npy", ".mat")
_log = logging.getLogger("ssl_vit")


@dataclass(frozen=True)
class Pair:
    """A pair is the file of an image and the file of its mask."""

    image: Path
    mask: Path
    source: SegmentSource | None = None  # what reads the mask where it is no PNG of numbers, as image `index` of it
    index: int = 0


@dataclass(frozen=True)
class Segmented:
    """A sample is one image to be segmented, with its mask."""

    name: str
    pixels: Tensor | None  # uint8 [3, S, S], the whole image, stretched; None where a file could not be read
    mask: NDArray[np.int64]  # [H, W] at its own size
    reason: str = ""  # why it could not be read


def find_pairs(folder: Path, side: str) -> list[Pair]:
    """Pair the images of a folder with masks, by name; `side`, "train" or "val", is the flag that named the folder.

    A folder of VOC holds lists in ``ImageSets/Segmentation``, one of ADE20K has ``training`` and ``validation``; there
    the same folder can be given for both sides.

    Raises:
        UserError: no such layout, nothing in it, or not one of its images or masks is there.
    """
    for images, masks in FOLDER_PAIRS:
        if (folder / images).is_dir() and (folder / masks).is_dir():
            places = [(folder / images / part, folder / masks / part) for part in ("", *_PARTS[side])]
            pictures, answers = next(
                (place for place in reversed(places) if place[0].is_dir() and place[1].is_dir()), places[0]
            )
            return _paired(folder, pictures, answers, _listed(folder, side))
    layouts = ", ".join(f"{images}/ and {masks}/" for images, masks in FOLDER_PAIRS)
    raise UserError(f"--{side} {folder}: no images with masks; expected {layouts}")


def _listed(folder: Path, side: str) -> set[str] | None:
    """The names that VOC's list for this side has, if there is one."""
    path = folder / "ImageSets" / "Segmentation" / f"{side}.txt"
    return set(path.read_text(encoding="utf-8").split()) if path.is_file() else None


def _paired(folder: Path, images: Path, masks: Path, listed: set[str] | None) -> list[Pair]:
    by_name, found = _by_stem(images, _IMAGES), _by_stem(masks, (".png",))
    wanted = sorted(found if listed is None else listed)
    if not wanted:
        raise UserError(f"{masks}: no masks; expected a .png for each image, of the same name")
    for place, own in ((images, by_name), (masks, found)):
        if not any(name in own for name in wanted):
            raise UserError(f"{folder}: none of {len(wanted)} names has a file in {place}, as {wanted[0]}; add them")
    for kind, names in (
        (f"images have no mask in {masks.name}/", {path.name for stem, path in by_name.items() if stem not in found}),
        ("files of masks are no PNG", {path.name for path in masks.iterdir() if path.suffix.lower() in _OTHER_MASKS}),
    ):
        if names and listed is None:
            _log.warning("%s: %d %s and are left out, as %s", folder, len(names), kind, printable(min(names)))
    # What is not there is found out where it is read, and is one of the files that can't be.
    return [Pair(by_name.get(name, images / name), found.get(name, masks / f"{name}.png")) for name in wanted]


def _by_stem(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """The files of a folder by their names without the ending; UserError where two have one name."""
    found = dict[str, Path]()
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in endings and (other := found.setdefault(path.stem, path)) is not path:
            raise UserError(f"{folder}: {other.name} and {path.name} have one name; remove one of them")
    return found


def read_mask(path: Path) -> NDArray[np.int64]:
    """Read the class numbers [H, W] of a mask of one channel (grey or palette). Raises BadImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG",)) as image:
                if image.mode not in ("L", "P", "I;16", "1", "I"):
                    raise BadImage(str(path), f"a mask of {image.mode}; expected one channel of class numbers")
                if image.mode == "P" and image.palette is None:
                    raise BadImage(str(path), "a palette image without a palette; write the mask again, as grey levels")
                if image.width * image.height > MAX_PIXELS:
                    raise BadImage(str(path), f"more than {MAX_PIXELS:.0f} pixels")
                return np.array(image).astype(np.int64)
    except BadImage:
        raise
    except Exception as error:  # on hostile bytes Pillow raises nearly anything
        raise BadImage(str(path), " ".join(str(error).split()) or type(error).__name__) from error


class SegmentationDataset(Dataset[Segmented]):
    """Images are stretched to `size` x `size`, so that every pixel of the mask is seen; masks stay as they are."""

    def __init__(self, pairs: Sequence[Pair], size: int, pixels: Pixels = ORDINARY) -> None:
        self.pairs, self.size, self.pixels = pairs, size, pixels

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Segmented:
        pair = self.pairs[index]
        try:
            image = decode(str(pair.image), self.pixels)
            if pair.source is None:
                mask = read_mask(pair.mask)
            else:
                mask = pair.source.read(pair.index, (image.shape[0], image.shape[1])).classes()
            if mask.shape == image.shape[1::-1] and (turn := quarter_turn(str(pair.image))):
                mask = np.ascontiguousarray(turned_mask(mask, turn))  # it was drawn before EXIF turned the image
        except BadImage as error:
            return Segmented(pair.image.name, None, np.zeros((0, 0), np.int64), str(error))
        height, width = image.shape[:2]
        if mask.shape != (height, width):
            reason = f"the mask is {mask.shape}, the image {(height, width)}"
            return Segmented(pair.image.name, None, mask, reason)
        pixels = resize(image, Box(0, 0, height, width), (self.size, self.size))
        return Segmented(pair.image.name, pixels, mask)


def collate(samples: list[Segmented]) -> tuple[Tensor, list[Segmented], list[Segmented]]:
    """Sort samples: images uint8 [B, 3, S, S] of those that could be read, those, and the others."""
    good = [sample for sample in samples if sample.pixels is not None]
    pixels = [sample.pixels for sample in good if sample.pixels is not None]
    bad = [sample for sample in samples if sample.pixels is None]
    return torch.stack(pixels) if pixels else torch.empty(0, dtype=torch.uint8), good, bad
