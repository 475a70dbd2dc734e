"""What a network's features are worth on some images of a run, measured in the same way before, during and after it.

Where there are labels it is k-NN, which never learns from the run; else scores that need none. The images are read once
and kept, so that measuring again costs a forward pass alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.data.augment import normalise
from ssl_vit.data.bad import printable
from ssl_vit.data.class_folders import in_class_folders
from ssl_vit.data.evalset import EvalDataset
from ssl_vit.data.sources import Source
from ssl_vit.eval.features import evaluating
from ssl_vit.eval.knn import knn, leave_one_out
from ssl_vit.eval.labelfree import cropped, lidar, rank_me, shared_by_image, zoomed
from ssl_vit.eval.readout import Readout, read_out

K = 20  # neighbours that vote
SHARED = 10  # neighbours that two views should share, as `ssl-vit eval labelfree` has them
CROPS = 4  # of an image, for LiDAR, likewise
LEAST, MOST = 256, 4096  # images that pass through the network for one score
SHARE = 40  # one of so many images that the run sees is looked at for a score
ROOM = 2**28  # bytes that the kept images may take
READ, FEWEST = 2**31, 64  # bytes of files that are read for them, and images of however large files
FEW = 2  # images of a class, on average, below which labels say nothing
_PIXELS = 32  # side of the small copies that stand for raw pixels


@dataclass(frozen=True)
class Score:
    """What features are worth: some numbers, of which the first counts most, and what each image says."""

    values: dict[str, float]
    each: NDArray[np.float64]  # [M] 1 where k-NN is right, else 0; without labels the share of neighbours kept

    def state(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        return {"values": self.values, "each": torch.from_numpy(self.each)}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Score:
        """As it was."""
        return cls(state["values"], state["each"].numpy())


class Yardstick:
    """How features are measured; subclasses hold the images, and say what was measured on how many of them."""

    k = 0  # whose nearest neighbours count

    def __init__(self, readout: Readout) -> None:
        self.readout = readout

    @property
    def what(self) -> str:
        """What is measured, on which images, in words."""
        raise NotImplementedError

    def score(self, backbone: Backbone) -> Score:
        """What a network's features are worth; its mode and its device stay."""
        return self.of_features([self._features(backbone, images) for images in self.images()])

    def score_pixels(self) -> Score:
        """What small copies of the images are worth, without any network."""
        flat = [
            F.adaptive_avg_pool2d(images.float() / 255, min(_PIXELS, images.shape[-1])).flatten(1)
            for images in self.images()
        ]
        mean = flat[0].mean(0)
        return self.of_features([(each - mean).numpy() for each in flat])

    def images(self) -> list[Tensor]:
        """The sets of images that are looked at, uint8 [N, 3, S, S] each."""
        raise NotImplementedError

    def of_features(self, features: list[NDArray[np.float32]]) -> Score:
        """The score of features [N, D], a set of them for each of images; nan where one is not finite."""
        raise NotImplementedError

    def _features(self, backbone: Backbone, images: Tensor) -> NDArray[np.float32]:
        readout, device = self.readout, next(backbone.parameters()).device
        with evaluating(backbone), torch.no_grad():  # not inference_mode, which marks what a network keeps for later
            parts = [
                read_out(backbone, normalise(part.to(device), readout.mean, readout.std), readout).cpu()
                for part in torch.split(images, readout.batch_size)
            ]
        return torch.cat(parts).numpy()


class Labelled(Yardstick):
    """k-NN top-1 of some labelled images: asked of a bank, or where there is none each of all the others."""

    k = K

    def __init__(self, asked: Source, bank: Source | None, readout: Readout, most: int) -> None:
        super().__init__(readout)
        half = most // 2 if bank is not None else most
        self._asked, self.labels = _read(asked, readout.image_size, half)
        self._bank: Tensor | None = None
        if bank is not None:
            self._bank, self._bank_labels = _read(bank, readout.image_size, most - len(self._asked))
        said = f"{len(self._asked):,} of {len(asked):,} images of {printable(asked.root)}"
        rest = "each other" if bank is None or self._bank is None else f"{len(self._bank):,} of the training images"
        self._what = f"k-NN top-1 in percent (k = {self.k}): {said} are compared with {rest}"

    @property
    def what(self) -> str:
        """k-NN, and on which images."""
        return self._what

    def images(self) -> list[Tensor]:
        """Those that are asked, and the bank."""
        return [self._asked] if self._bank is None else [self._asked, self._bank]

    def of_features(self, features: list[NDArray[np.float32]]) -> Score:
        """Whether each image's class is found."""
        if not all(np.isfinite(each).all() for each in features):
            return Score({"k-NN": math.nan}, np.zeros(len(self.labels)))
        if self._bank is None:
            found = leave_one_out(features[0], self.labels, self.k)
        else:
            result = knn(features[1], self._bank_labels, features[0], self.labels, (self.k,))
            found = result.predictions[self.k]
        right = (found == self.labels).astype(np.float64)
        return Score({"k-NN": 100 * float(right.mean())}, right)


class LabelFree(Yardstick):
    """Neighbours that two views of an image share, the effective rank, and LiDAR; of views that no step sees."""

    def __init__(self, source: Source, readout: Readout, most: int, seed: int) -> None:
        super().__init__(readout)
        self._plain, _ = _read(source, readout.image_size, max(2, most // 4))
        count = len(self._plain)
        self.k = max(1, min(SHARED, count // 4))
        crops = self._plain[:: 2 if count > CROPS else 1]
        views = [_altered(crops, partial(cropped, seed, view)) for view in range(CROPS)]
        self._sets = [self._plain, _altered(self._plain, zoomed), torch.cat(views)]
        self._what = (
            f"no labels: neighbours shared by two views (percent of {self.k}), effective rank (RankMe) and LiDAR of "
            f"{count:,} of {len(source):,} images of {printable(source.root)}"
        )

    @property
    def what(self) -> str:
        """The three scores, and on which images."""
        return self._what

    def images(self) -> list[Tensor]:
        """The images, their second views, and all crops of some of them, view by view."""
        return self._sets

    def of_features(self, features: list[NDArray[np.float32]]) -> Score:
        """The three scores."""
        plain, moved, crops = features
        if not all(np.isfinite(each).all() for each in features):
            return Score(dict.fromkeys(("neighbours", "RankMe", "LiDAR"), math.nan), np.zeros(len(plain)))
        shared = shared_by_image(plain, moved, self.k)
        views = crops.reshape(CROPS, -1, crops.shape[1])
        return Score(
            {"neighbours": 100 * float(shared.mean()), "RankMe": rank_me(plain), "LiDAR": lidar(views)}, shared
        )


def passes(seen: int, size: int) -> int:
    """How many images of ``size`` pixels go through the network for a score, at most, in a run that sees so many.

    >>> passes(400_000, 32), passes(400_000, 224), passes(500, 224)
    (4096, 1783, 256)
    """
    return max(LEAST, min(MOST, seen // SHARE, ROOM // (3 * size**2)))


def yardstick_for(source: Source, val: Source | None, readout: Readout, seen: int, seed: int) -> Yardstick | None:
    """What can be measured of a run; None where fewer than two of its images can be read.

    source: images to learn from; val: labelled ones, where they were given; seen: images that the run sees in all.
    """
    most = passes(seen, readout.image_size)
    folders = in_class_folders(source)[0]
    if val is not None and (labelled := in_class_folders(val)[0]).classes:
        bank = folders if folders.classes == labelled.classes else None
        found: Yardstick = Labelled(labelled, bank, readout, most)
        if len(found.images()[0]) > 1:
            return found
    if folders.classes and min(most, len(folders)) >= FEW * len(folders.classes):
        found = Labelled(folders, None, readout, most)
        if len(found.images()[0]) > 1:
            return found
    found = LabelFree(source, readout, most, seed)
    return found if len(found.images()[0]) > 1 else None


def _read(source: Source, size: int, most: int) -> tuple[Tensor, NDArray[np.int64]]:
    """Evenly spaced images of a source, uint8 [N, 3, S, S], and their labels [N]; without those that can't be read."""
    readable = max(FEWEST, int(READ / max(1.0, float(source.sizes.mean()))))
    rows = np.unique(np.linspace(0, len(source) - 1, min(most, readable, len(source))).round().astype(int))
    dataset = EvalDataset(source, size)
    good = [(each.image, each.label) for each in map(dataset.__getitem__, rows.tolist()) if each.image is not None]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0, 3, size, size, dtype=torch.uint8)
    return images, np.array([label for _, label in good], dtype=np.int64)


def _altered(images: Tensor, alter: Any) -> Tensor:
    """Each image [N, 3, S, S] changed by a function of its pixels [S, S, 3] and its number."""
    changed = [
        torch.from_numpy(np.ascontiguousarray(alter(image.permute(1, 2, 0).numpy(), number)))
        for number, image in enumerate(images)
    ]
    return torch.stack(changed).permute(0, 3, 1, 2) if changed else images
