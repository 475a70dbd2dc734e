"""From a JPEG to a batch of views: ours against the official DINO recipe in torchvision's transforms, and LightlyTrain.

    python benchmarks/data.py [PHOTOS] [--rounds 4] [--images 256] [--json FILE] [--lightly-train PYTHON]

PHOTOS: a folder of JPEGs; without one, 500 x 375 crops of scikit-learn's two sample photographs, about 90 kB each.
Every image becomes 2 x 224 and 8 x 96 pixels at DINO's scales; one worker process reads, on one thread, the main
process has float32 views at the end (ours augments there, with the extra numba). Counted is CPU time of both processes
together (other programs may run) from the ninth batch on, so that no start is in it; rounds alternate, medians are
printed.
LightlyTrain runs where PYTHON has it installed, with its own loader, on albumentations; 256 of its images are timed,
and as it starts its workers anew at each epoch, PHOTOS should be at least 384. The row "decode" compares our decoding
with Pillow's alone, in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from peers.cpu import cpu_seconds
from PIL import Image, ImageFilter, ImageOps
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from ssl_vit.data.batch import to_views
from ssl_vit.data.decode import decode
from ssl_vit.data.loader import build_loader
from ssl_vit.data.plan import ViewPlan
from ssl_vit.data.sources import Source, open_source
from ssl_vit.methods.dino_config import Config
from ssl_vit.process import keep_memory

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH, WARM, AHEAD = 8, 8, 8  # images; batches before the first that counts, and that follow the last, as in a long run
MUST = [  # way, peer, how many times quicker it has to be
    ("exact", "official recipe", 4.0),
    ("exact", "lightly-train", 1.5),
    ("decode", "bare Pillow", 0.85),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--lightly-train", type=Path, metavar="PYTHON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()  # as a run does; the official recipe has it too
    with tempfile.TemporaryDirectory() as folder:
        photos = args.photos or photographs(Path(folder), 384)
        source = open_source(photos)
        config = Config(local_crops=8, global_scale=(0.4, 1.0), local_scale=(0.05, 0.4), local_size=96)
        plan, steps = config.views(224), args.images // BATCH
        ways: dict[str, Callable[[], float]] = {
            "official recipe": lambda: theirs(source, steps),
            "exact": lambda: ours(source, plan, steps),
            "bare Pillow": lambda: each(args.images, lambda i: bare(source, i)),
            "decode": lambda: each(args.images, lambda i: decode(source.path(i % len(source)))),
        }
        if args.lightly_train:
            ways["lightly-train"] = lambda: lightly_train(args.lightly_train, photos)
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(args.rounds):
            for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
                spent[name].append(ways[name]())
    print(f"{len(source)} images of {source.fingerprint['bytes'] / len(source) / 1000:.0f} kB; ", end="")
    print(f"medians of {args.rounds}, ms of CPU an image; load {os.getloadavg()[1]:.1f}")
    tell(spent)
    if args.json:
        args.json.write_text(json.dumps(spent, indent=1))


def tell(spent: dict[str, list[float]]) -> None:
    """Medians of every way, and of the ratios of each round."""
    for name, values in spent.items():
        median = statistics.median(values)
        print(f"  {name:16}{median:8.2f} ms {1000 / median:8.1f} images/s")
    for name, peer, must in MUST:
        if peer in spent:
            ratios = [b / a for a, b in zip(spent[name], spent[peer], strict=True)]
            ratio = statistics.median(ratios)
            said = f"must {must}: {'holds' if ratio >= must else 'MISSED'}"
            print(f"  {name:7} {ratio:5.2f} x {peer:16} ({min(ratios):.2f} to {max(ratios):.2f})  {said}")


def photographs(folder: Path, count: int = 48) -> Path:
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    for number in range(count):
        whole = load_sample_images().images[number % 2]
        top, left = rng.integers(0, whole.shape[0] - 375), rng.integers(0, whole.shape[1] - 500)
        part = whole[top : top + 375, left : left + 500, ::].copy()
        Image.fromarray(part).save(folder / f"{number:03d}.jpg", quality=95 if number % 2 == 0 else 97)
    return folder


def steady(batches: Iterable[object], steps: int) -> float:
    """ms of CPU an image, workers included, in the midst of a run."""
    start = 0.0
    for number, _ in enumerate(batches):
        if number == WARM:
            start = cpu_seconds()
        if number == WARM + steps:
            break
    return 1000 * (cpu_seconds() - start) / (steps * BATCH)


def each(images: int, read: Callable[[int], object]) -> float:
    """ms of CPU an image, in this process alone."""
    read(0)
    start = cpu_seconds()
    for i in range(images):
        read(i)
    return 1000 * (cpu_seconds() - start) / images


def ours(source: Source, plan: ViewPlan, steps: int) -> float:
    total = WARM + steps + AHEAD
    loader = build_loader(source, plan, batch_size=BATCH, seed=0, total_steps=total, workers=1, max_bad=0.0)
    return steady((to_views(batch, MEAN, STD, "cpu", kernels=True) for batch in loader), steps)


def theirs(source: Source, steps: int) -> float:
    rows = [i % len(source) for i in range((WARM + steps + AHEAD) * BATCH)]
    return steady(DataLoader(Official(source), BATCH, sampler=rows, num_workers=1, worker_init_fn=one_thread), steps)


def lightly_train(python: Path, photos: Path) -> float:
    driver = Path(__file__).parent / "peers" / "lightly_train_pretrain.py"
    line = [python.absolute(), driver, "data", "32-true", photos.resolve()]
    with tempfile.TemporaryDirectory() as home:
        quiet = {"OMP_NUM_THREADS": "1", "HOME": home, "HF_HUB_OFFLINE": "1"}
        result = subprocess.run(line, capture_output=True, text=True, env=os.environ | quiet, cwd=home)
    if result.returncode:
        raise SystemExit(f"lightly-train: {result.stderr[-3000:]}")
    found = json.loads(next(line for line in result.stdout.splitlines() if line.startswith('{"ms"')))
    return float(found["ms"]) / BATCH


def one_thread(_: int) -> None:
    torch.set_num_threads(1)


def bare(source: Source, number: int) -> None:
    with Image.open(str(source.path(number % len(source)))) as image:
        image.load()


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
