"""From a JPEG to a batch of views: ours against the official DINO recipe in torchvision's transforms, on one thread.

    python benchmarks/data.py [PHOTOS] [--rounds 5] [--images 96] [--json FILE]

PHOTOS: a folder of JPEGs; without one, 500 x 375 crops of scikit-learn's two sample photographs, about 110 kB each.
Every image becomes 2 x 224 and 8 x 96 pixels at DINO's scales; one worker process reads, the main process augments and
has float32 views at the end. Counted is CPU time of both processes together (other programs may run); rounds alternate,
medians are printed. The row "decode" compares our decoding with Pillow's alone, in one process.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from ssl_vit.data.batch import to_views
from ssl_vit.data.decode import decode
from ssl_vit.data.loader import build_loader
from ssl_vit.data.plan import ViewPlan
from ssl_vit.data.sources import Source, open_source
from ssl_vit.methods.dino_config import Config

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 8
MUST = {"exact": ("official recipe", 4.0), "decode": ("bare Pillow", 0.85)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        source = open_source(args.photos or photographs(Path(folder)))
        config = Config(local_crops=8, global_scale=(0.4, 1.0), local_scale=(0.05, 0.4), local_size=96)
        plan, steps = config.views(224), args.images // BATCH
        ways: dict[str, Callable[[], None]] = {
            "official recipe": lambda: theirs(source, steps),
            "exact": lambda: ours(source, plan, steps, fast=False),
            "fast": lambda: ours(source, plan, steps, fast=True),
            "bare Pillow": lambda: bare(source, args.images),
            "decode": lambda: decoded(source, args.images),
        }
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(args.rounds + 1):
            for name, run in ways.items():
                milliseconds = 1000 * cpu_time(run) / (steps * BATCH)
                if number:  # the first round warms up
                    spent[name].append(milliseconds)
    print(
        f"{len(source)} images of {source.fingerprint['bytes'] / len(source) / 1000:.0f} kB, medians of {args.rounds}:"
    )
    medians = {name: statistics.median(values) for name, values in spent.items()}
    for name, values in spent.items():
        peer, must = MUST.get(name, ("official recipe", None))
        ratio = statistics.median([b / a for a, b in zip(values, spent[peer], strict=True)])
        said = "" if must is None else f", must {must}: {'holds' if ratio >= must else 'MISSED'}"
        versus = "" if name in ("official recipe", "bare Pillow") else f"  {ratio:5.2f} x {peer}{said}"
        print(f"  {name:16}{medians[name]:8.2f} ms of CPU an image {1000 / medians[name]:8.1f} images/s{versus}")
    if args.json:
        args.json.write_text(json.dumps(spent, indent=1))


def photographs(folder: Path) -> Path:
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    for number in range(48):
        whole = load_sample_images().images[number % 2]
        top, left = rng.integers(0, whole.shape[0] - 375), rng.integers(0, whole.shape[1] - 500)
        part = whole[top : top + 375, left : left + 500, ::].copy()
        Image.fromarray(part).save(folder / f"{number:02d}.jpg", quality=95 if number % 2 == 0 else 97)
    return folder


def cpu_time(run: Callable[[], None]) -> float:
    """Seconds of this process and of those that it has started and that have ended."""

    def now() -> float:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + ended.ru_utime + ended.ru_stime

    start = now()
    run()
    return now() - start


def ours(source: Source, plan: ViewPlan, steps: int, fast: bool) -> None:
    for batch in build_loader(source, plan, batch_size=BATCH, seed=0, total_steps=steps, workers=1, max_bad=0.0):
        to_views(batch, MEAN, STD, "cpu", fast=fast)


def theirs(source: Source, steps: int) -> None:
    rows = [i % len(source) for i in range(steps * BATCH)]
    for _ in DataLoader(Official(source), BATCH, sampler=rows, num_workers=1, worker_init_fn=one_thread):
        pass


def one_thread(_: int) -> None:
    torch.set_num_threads(1)


def bare(source: Source, images: int) -> None:
    for i in range(images):
        with Image.open(str(source.path(i % len(source)))) as image:
            image.load()


def decoded(source: Source, images: int) -> None:
    for i in range(images):
        decode(source.path(i % len(source)))


class Official(Dataset[list[torch.Tensor]]):
    """The augmentations of arXiv 2104.14294, in the classes of torchvision that its code names."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.first = recipe(224, (0.4, 1.0), blur=1.0, solarize=0.0)
        self.second = recipe(224, (0.4, 1.0), blur=0.1, solarize=0.2)
        self.local = recipe(96, (0.05, 0.4), blur=0.5, solarize=0.0)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        with Image.open(str(self.source.path(index))) as image:
            image = image.convert("RGB")
        return [self.first(image), self.second(image), *(self.local(image) for _ in range(8))]


def recipe(size: int, scale: tuple[float, float], blur: float, solarize: float) -> transforms.Compose:
    jitter = transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    interpolation = transforms.InterpolationMode.BICUBIC
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=scale, interpolation=interpolation),
            transforms.RandomHorizontalFlip(0.5),
            transforms.RandomApply([jitter], 0.8),
            transforms.RandomGrayscale(0.2),
            transforms.RandomApply([transforms.Lambda(blurred)], blur),
            transforms.RandomApply([transforms.Lambda(ImageOps.solarize)], solarize),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(float(np.random.uniform(0.1, 2.0))))


if __name__ == "__main__":
    main()
