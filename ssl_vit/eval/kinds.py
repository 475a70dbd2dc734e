"""Every kind of score: where it is, which folders it reads, what may be set. Imports no torch.

A new kind is one file with a function ``(job, **options) -> Outcome`` (see ``job.py``) and one entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ssl_vit.detectors.table import DETECTORS

POOLINGS = ("model", "class", "mean", "class+mean")  # see readout.py
PRECISIONS = ("float32", "bfloat16")

TRAIN = ("train", "labelled images to learn from")
VAL = ("val", "labelled images to score on")
_BOXES = "with boxes: a COCO .json, a Pascal VOC folder or a YOLO folder"


@dataclass(frozen=True)
class Option:
    """One setting of a kind: ``--name VALUE`` on the command line."""

    default: Any
    help: str
    parse: Callable[[str], Any] = str  # raises ValueError


@dataclass(frozen=True)
class Kind:
    """One kind of score."""

    home: str  # "module:function"
    help: str
    folders: Mapping[str, str] = field(default_factory=lambda: dict([TRAIN, VAL]))  # flag -> what is in it
    options: Mapping[str, Option] = field(default_factory=dict)
    reads_features: bool = True  # of a frozen network, so that layers, pooling, … can be chosen
    quiet: tuple[str, ...] = ()  # parts of the result that are not printed: they are for the picture


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers between commas.

    >>> numbers("10,20")
    (10, 20)
    """
    return tuple(int(word) for word in text.split(","))


def words(text: str) -> tuple[str, ...]:
    """Words between commas.

    >>> words("snow,fog")
    ('snow', 'fog')
    """
    return tuple(text.split(","))


def within(low: float, high: float) -> Callable[[str], tuple[float, ...]]:
    """A reader of numbers between commas, each from low to high; an empty text has none.

    >>> within(1, 5)("1,2.5"), within(1, 5)("")
    ((1.0, 2.5), ())
    """

    def read(text: str) -> tuple[float, ...]:
        found = tuple(float(word) for word in text.split(",")) if text else ()
        if not all(low <= value <= high for value in found):
            raise ValueError(f"expected numbers from {low:g} to {high:g}")
        return found

    return read


def whole(low: int, high: int) -> Callable[[str], tuple[int, ...]]:
    """As ``within``, of whole numbers.

    >>> whole(1, 5)("1,5")
    (1, 5)
    """

    def read(text: str) -> tuple[int, ...]:
        within(low, high)(text)
        return numbers(text) if text else ()

    return read


def positive(text: str) -> int:
    """A whole number from 1 on.

    >>> positive("3")
    3
    """
    if int(text) < 1:
        raise ValueError("expected 1 or more")
    return int(text)


def rates(text: str) -> tuple[float, ...]:
    """Numbers above 0 between commas.

    >>> rates("0.1,1")
    (0.1, 1.0)
    """
    found = tuple(float(word) for word in text.split(","))
    if not all(value > 0 for value in found):
        raise ValueError("expected numbers above 0")
    return found


def shares(text: str) -> tuple[float, ...]:
    """Numbers above 0 and at most 100 between commas.

    >>> shares("1,100")
    (1.0, 100.0)
    """
    found = tuple(float(word) for word in text.split(","))
    if not all(0 < value <= 100 for value in found):
        raise ValueError("expected numbers above 0, 100 at most")
    return found


def different(text: str) -> tuple[int, ...]:
    """Whole numbers from 0 on between commas, none of them twice.

    >>> different("0,1,2")
    (0, 1, 2)
    """
    found = whole(0, 2**31)(text)
    if not found or len(set(found)) < len(found):
        raise ValueError("expected different numbers")
    return found


def auto(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """As `parse`, and the word "auto" as it is.

    >>> auto(positive)("auto"), auto(positive)("3")
    ('auto', 3)
    """
    return lambda text: text if text == "auto" else parse(text)


def rate(text: str) -> float:
    """A number above 0.

    >>> rate("0.1")
    0.1
    """
    [found] = rates(text)
    return found


def one_of(*names: str) -> Callable[[str], str]:
    """One of these words.

    >>> one_of("detr", "yolos")("detr")
    'detr'
    """

    def read(text: str) -> str:
        if text not in names:
            raise ValueError(f"expected one of {', '.join(names)}")
        return text

    return read


def percents(text: str) -> tuple[float, ...]:
    """Numbers above 0 and below 100 between commas.

    >>> percents("1,10")
    (1.0, 10.0)
    """
    found = tuple(float(word) for word in text.split(","))
    if not all(0 < value < 100 for value in found):
        raise ValueError("expected numbers above 0 and below 100")
    return found


def temperatures(text: str) -> tuple[float, ...]:
    """Numbers between commas; "plain" is the vote in which every neighbour counts one.

    >>> temperatures("0.07,plain")
    (0.07, inf)
    """
    return tuple(float("inf") if word == "plain" else float(word) for word in text.split(","))


def layers(text: str) -> tuple[int, ...]:
    """Layers by number, from 0 or from the end, or the last few.

    >>> layers("last4"), layers("8"), layers("8,10"), layers("-1")
    ((-4, -3, -2, -1), (8,), (8, 10), (-1,))
    """
    if text.startswith("last"):
        count = int(text.removeprefix("last"))
        if count < 1:
            raise ValueError(f"expected last1 or more, got {text}")
        return tuple(range(-count, 0))
    return numbers(text)


KINDS: dict[str, Kind] = {
    "knn": Kind(
        "ssl_vit.eval.knn:score",
        "nearest neighbours in cosine similarity (DINO, arXiv 2104.14294)",
        options={
            "k": Option((10, 20, 100, 200), "neighbours, N,N,…", numbers),
            "temperature": Option((0.07,), "of the votes, T,T,…; the plain vote is always added", temperatures),
        },
    ),
    "linear": Kind(
        "ssl_vit.eval.linear:score",
        "a linear classifier by SGD, its learning rate chosen on a part of train",
    ),
    "grid": Kind(
        "ssl_vit.eval.grid:score",
        "linear classifiers over layers, pooling and learning rates, chosen on a part of train (DINOv2)",
        options={"depths": Option((1, 4), "the last so many layers, N,N,…", whole(1, 1000))},
    ),
    "augmented": Kind(
        "ssl_vit.eval.augmented:score",
        "a linear classifier on another crop in every epoch, as DINO's and MoBY's papers score",
        options={
            "epochs": Option(100, "passes over train", positive),
            "batch": Option(256, "images a step", positive),
            "lr": Option((0.001, 0.01, 0.1), "at 256 images a step, R,R,…; one is not chosen but taken", rates),
        },
    ),
    "finetune": Kind(
        "ssl_vit.eval.finetune:score",
        "the whole network trained on the classes: layer decay, mixup, smoothed labels",
        options={
            "epochs": Option(100, "passes over train", positive),
            "batch": Option(64, "images a step, an even number", positive),
            "lr": Option(1e-3, "at 256 images a step", float),
            "layer_decay": Option(0.75, "the learning rate of a layer over that of the next", float),
            "mixup": Option(0.8, "0 for none", float),
            "cutmix": Option(1.0, "0 for none", float),
        },
    ),
    "logistic": Kind(
        "ssl_vit.eval.logistic:score",
        "logistic regression to its optimum by L-BFGS, its C chosen on a part of train",
    ),
    "fewshot": Kind(
        "ssl_vit.eval.fewshot:score",
        "logistic regression from a few labels a class, with an interval over draws",
        options={
            "shots": Option((1, 5, 10), "labelled images a class, N,N,…", numbers),
            "share": Option((), "of the labels, in percent, P,P,…", percents),
            "draws": Option(5, "of the labelled images, 2 or more", int),
        },
    ),
    "retrieval": Kind(
        "ssl_vit.eval.retrieval:score",
        "ranking train by similarity to each image of val: mAP and recall@k",
        options={"k": Option((1, 5, 10), "first ones looked at, N,N,…", numbers)},
    ),
    "clustering": Kind(
        "ssl_vit.eval.clustering:score",
        "k-means on val against its labels: NMI and ARI",
        folders=dict([VAL]),
    ),
    "robustness": Kind(
        "ssl_vit.eval.robustness:score",
        "images corrupted, hidden, shuffled and attacked, against clean ones",
        options={
            "corruptions": Option(("all",), "of ImageNet-C, NAME,NAME,… or none", words),
            "severities": Option((1, 2, 3, 4, 5), "of each corruption, N,N,…", whole(1, 5)),
            "hide": Option((25.0, 50.0, 75.0), "percent of the patches, P,P,…", within(0, 100)),
            "shuffle": Option((2, 4, 8), "tiles a side that change places, N,N,…", whole(2, 32)),
            "radius": Option((1.0, 4.0), "of adversarial changes in 255ths, R,R,…", within(0, 255)),
        },
    ),
    "shapebias": Kind(
        "ssl_vit.eval.shapebias:score",
        "images of one class's shape and another's texture: which of them decides",
        folders={
            "train": "labelled images to learn from",
            "conflict": "sub-folders by shape, file names that end in -TEXTURE and a number (arXiv 1811.12231)",
        },
    ),
    "segmentation": Kind(
        "ssl_vit.eval.segmentation:score",
        "masks from frozen patches, by a linear classifier and by the nearest patches: mIoU",
        folders={
            "train": "images with masks to learn from, as VOC's, ADE20K's, or images/ and masks/",
            "val": "images with masks to score on",
        },
        options={"ignore": Option((255,), "numbers in the masks that don't count, N,N,…", whole(0, 65535))},
    ),
    "detection": Kind(
        "ssl_vit.eval.detection:score",
        "a detector trained from scratch and from the weights, over several seeds: mAP, and which is better",
        folders={"train": f"images {_BOXES}", "val": "images with boxes to score on, likewise"},
        options={
            "detector": Option("faster_rcnn", ", ".join(DETECTORS), one_of(*DETECTORS)),
            "seeds": Option((0, 1, 2), "a pair of runs each, N,N,…", different),
            "share": Option((100.0,), "of train's images, in percent, P,P,…", shares),
            "steps": Option("auto", "of a run; auto: 24 passes over its images, 500 to 20,000 steps", auto(positive)),
            "size": Option("auto", "pixels a side; auto: as the images are, 640 at most", auto(positive)),
            "batch": Option(8, "images a step", positive),
            "lr": Option("auto", "of the detector", auto(rate)),
            "backbone_lr": Option("auto", "of the backbone in both; auto: as --lr", auto(rate)),
            "train_images": Option("auto", "folder of the images of a COCO .json; auto: that of the file"),
            "val_images": Option("auto", "likewise"),
        },
        reads_features=False,
        quiet=("examples",),
    ),
    "labelfree": Kind(
        "ssl_vit.eval.labelfree:score",
        "without labels: effective rank, LiDAR, alignment, uniformity, neighbours shared by two views",
        folders={"data": "images, with labels or without"},
        options={
            "k": Option(10, "neighbours", int),
            "views": Option(4, "crops of every image, for LiDAR", int),
        },
    ),
}
