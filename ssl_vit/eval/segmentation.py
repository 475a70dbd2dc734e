"""Segmentation from frozen patches: a linear classifier of each patch, and its nearest patches; mIoU."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from ssl_vit.data.augment import normalise
from ssl_vit.data.bad import BadList
from ssl_vit.data.crops import sample_rng
from ssl_vit.data.inventory import Known, files_known_by
from ssl_vit.data.lasting import Announced, LastingLoader
from ssl_vit.data.measure import Files
from ssl_vit.data.readers import TIMEOUT, worker_count, worker_options
from ssl_vit.data.segmentation import Pair, SegmentationDataset, Segmented, collate, find_pairs
from ssl_vit.data.segments import NOWHERE
from ssl_vit.errors import UserError
from ssl_vit.eval.features import evaluating
from ssl_vit.eval.job import Job, Outcome
from ssl_vit.eval.kinds.segmentation import Segmentation
from ssl_vit.eval.knn import nearest_neighbours
from ssl_vit.eval.linear import LinearProbe, fit_linear
from ssl_vit.eval.protocol import Side
from ssl_vit.eval.readout import patch_maps
from ssl_vit.eval.segmentation_data import of_coco, open_segments
from ssl_vit.progress import progress

LINEAR_PATCHES, BANK = 200_000, 50_000  # patches of train that are learnt from, that are searched
EPOCHS, K, TEMPERATURE = 10, 20, 0.07
_SHOWN = 12  # numbers of classes in a message

log = logging.getLogger("ssl_vit")


@dataclass(frozen=True)
class Patches:
    """Patches of train are kept, each with the class that most of its pixels have."""

    features: NDArray[np.float32]  # [N, D]
    labels: NDArray[np.int64]  # [N] place in `values`
    values: NDArray[np.int64]  # [C] the numbers in the masks


def score(job: Job, asked: Segmentation) -> Outcome:
    """The kind "segmentation" gives mIoU and pixel accuracy in percent, at each mask's own size, of frozen heads."""
    (train, val), ignore = _open(job, asked)
    known = _collect(job, train, ignore)
    probe = fit_linear(known.features, known.labels, epochs=EPOCHS, seed=job.seed, device=job.device, dtype=job.dtype)
    rows = np.random.default_rng(job.seed).permutation(len(known.labels))[:BANK]
    bank, bank_labels = known.features[rows], known.labels[rows]
    job.classes = len(known.values)
    tables: dict[str, NDArray[np.int64]] = {
        head: np.zeros((job.classes, job.classes), np.int64) for head in ("linear", "knn") if head in asked.head
    }
    for maps, samples in _maps(job, val, "val"):
        patches = np.ascontiguousarray(maps.permute(0, 2, 3, 1).flatten(0, 2).numpy())
        shape = (len(samples), *maps.shape[-2:], job.classes)
        for name in tables:
            each = _linear(probe, patches) if name == "linear" else votes(bank, bank_labels, patches, job.classes)
            planes = each.reshape(shape).permute(0, 3, 1, 2)
            for plane, sample in zip(planes, samples, strict=True):
                tables[name] += confusion(known.values, sample, segment(plane, sample.mask.shape), ignore)
    settings = {
        "transform": f"the whole image stretched to {job.readout.image_size} x {job.readout.image_size}",
        "patches": {"linear": len(known.labels), "knn": len(rows)},
        "linear": f"lr chosen on a tenth of each class of train's patches, {EPOCHS} epochs",
        "knn": f"k {K}, temperature {TEMPERATURE}",
        "ignore": list(ignore),
    }
    scores = {name: iou_summary(table) for name, table in tables.items()}
    return Outcome(scores, settings, seed=job.seed, more={"lr": probe.rate})


def _open(job: Job, asked: Segmentation) -> tuple[list[list[Pair]], tuple[int, ...]]:
    """The pairs of both sides, and the numbers that don't count."""
    images = {"train": asked.train_images, "val": asked.val_images}
    if not any(of_coco(job.path(side)) for side in images):
        for side, given in images.items():
            if given != "auto":
                raise UserError(f"--{side}-images {given}: only a COCO .json is given its images; leave it out")
        return [find_pairs(job.path(side), side) for side in images], asked.ignore
    train, val = (open_segments(job.path(side), images[side], side, asked.ignore, asked.max_bad) for side in images)
    both = (train, val.numbered_as(train))
    return [[Pair(Path(each.path(i)), each.mask(i), each, i) for i in range(len(each))] for each in both], (NOWHERE,)


def iou_summary(table: NDArray[np.int64]) -> dict[str, float]:
    """The table gives mIoU over the classes in the masks or in the answer, and pixel accuracy, in percent.

    table: [C, C] pixels by true and by found class.

    >>> iou_summary(np.array([[3, 1], [0, 4]]))
    {'mIoU': 77.5, 'accuracy': 87.5}
    """
    both = np.diag(table)
    union = table.sum(0) + table.sum(1) - both
    iou = both[union > 0] / union[union > 0]
    return {"mIoU": 100 * float(iou.mean()), "accuracy": 100 * float(both.sum() / table.sum())}


def confusion(
    values: NDArray[np.int64], sample: Segmented, found: NDArray[np.int64], ignore: tuple[int, ...]
) -> NDArray[np.int64]:
    """Pixels are counted by true and by found class [C, C]; UserError for a class that train doesn't have."""
    counted = ~np.isin(sample.mask, ignore)
    true = sample.mask[counted]
    unknown = np.setdiff1d(true, values)
    if len(unknown):
        raise UserError(
            f"--val: the mask of {sample.name} has class {unknown[0]}, which no mask of --train has; "
            f"give both the same classes, or leave it out by --ignore {','.join(map(str, (*ignore, unknown[0])))}"
        )
    count = len(values)
    cells = np.searchsorted(values, true) * count + found[counted]
    return np.bincount(cells, minlength=count * count).reshape(count, count)


def segment(scores: Tensor, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Every pixel [H, W] gets a class by scores [C, h, w] of patches, enlarged bilinearly."""
    enlarged = torch.nn.functional.interpolate(scores[None], shape, mode="bilinear", align_corners=False)
    found: NDArray[np.int64] = enlarged[0].argmax(0).numpy()
    return found


def votes(bank: NDArray[np.float32], labels: NDArray[np.int64], patches: NDArray[np.float32], classes: int) -> Tensor:
    """Each class gets its share [N, C] of the nearest patches, weighted by exp(similarity / temperature)."""
    similarity, near = nearest_neighbours(bank, patches, min(K, len(bank)))
    weights = torch.from_numpy(similarity / TEMPERATURE).softmax(1)
    return torch.zeros(len(patches), classes).scatter_add_(1, torch.from_numpy(labels[near]), weights)


def _linear(probe: LinearProbe, patches: NDArray[np.float32]) -> Tensor:
    weights, bias = probe.affine()
    return torch.from_numpy(patches) @ weights.cpu() + bias.cpu()


def _collect(job: Job, pairs: list[Pair], ignore: tuple[int, ...]) -> Patches:
    """Some patches of every image, so that all together are at most LINEAR_PATCHES."""
    most = max(1, LINEAR_PATCHES // len(pairs))
    features, values = list[NDArray[np.float32]](), list[NDArray[np.int64]]()
    pixels, done = Counter[int](), 0
    for maps, samples in _maps(job, pairs, "train"):
        for each, sample in zip(maps, samples, strict=True):
            pixels.update(
                dict(zip(*(part.tolist() for part in np.unique(sample.mask, return_counts=True)), strict=True))
            )
            labels = patch_labels(sample.mask, each.shape[-2:], ignore).ravel()
            rows = np.flatnonzero(labels >= 0)
            rows = np.sort(sample_rng(job.seed, 0, done).permutation(rows)[:most])
            features.append(each.flatten(1).T.numpy()[rows])
            values.append(labels[rows])
            done += 1
    numbers, labels = np.unique(np.concatenate(values), return_inverse=True)
    said = classes_said(pixels, ignore)
    if len(numbers) < 2:
        raise UserError(f"--train {job.path('train')}: {said}; segmentation needs two classes or more")
    log.log(logging.WARNING if pixels.keys() & set(ignore) else logging.INFO, "--train %s: %s", job.path("train"), said)
    return Patches(np.concatenate(features), labels.astype(np.int64), numbers)


def classes_said(pixels: Mapping[int, int], ignore: tuple[int, ...]) -> str:
    """Say which numbers the masks hold, which of them don't count, and how that is changed. pixels: by number.

    >>> classes_said({0: 75, 255: 25}, (255,))
    "the masks hold 1 class: 0; 255 (25.0 % of the pixels) does not count, --ignore '' counts it"
    """
    counted = sorted(pixels.keys() - set(ignore))
    left = sorted(pixels.keys() & set(ignore))
    shown = ", ".join(map(str, counted[:_SHOWN])) + " …" * (len(counted) > _SHOWN)
    said = f"the masks hold {len(counted)} {'class' if len(counted) == 1 else 'classes'}: {shown or 'none'}"
    for number in left:
        share = 100 * pixels[number] / sum(pixels.values())
        others = ",".join(str(other) for other in ignore if other != number) or "''"
        said += f"; {number} ({share:.1f} % of the pixels) does not count, --ignore {others} counts it"
    return said


def patch_labels(mask: NDArray[np.int64], grid: tuple[int, ...], ignore: tuple[int, ...]) -> NDArray[np.int64]:
    """Each patch [h, w] gets the most frequent class among its pixels; -1 where all of them are ignored.

    >>> patch_labels(np.array([[1, 1, 255, 255], [1, 2, 255, 255]]), (1, 2), (255,))
    array([[ 1, -1]])
    """
    rows, columns = (np.arange(side) * count // side for side, count in zip(mask.shape, grid, strict=True))
    patch = (rows[:, None] * grid[1] + columns)[~np.isin(mask, ignore)]
    values, labels = np.unique(mask[~np.isin(mask, ignore)], return_inverse=True)
    cells = grid[0] * grid[1]
    counts = np.bincount(patch * len(values) + labels, minlength=cells * len(values)).reshape(cells, len(values))
    if not len(values):
        return np.full(grid, -1)
    return np.where(counts.any(1), values[counts.argmax(1)], -1).reshape(grid)


def _maps(job: Job, pairs: list[Pair], side: str) -> Iterator[tuple[Tensor, list[Segmented]]]:
    """Patches [B, D, h, w] on the CPU, and their images; unreadable files are named and left out."""
    pixels_of = job.pixels_of(Files([str(pair.image) for pair in pairs]))
    dataset, readout = SegmentationDataset(pairs, job.readout.image_size, pixels_of), job.readout
    bad = BadList(len(pairs), job.max_bad, consequence="it is left out", setting="--max-bad")
    backbone, left_out = job.backbone, 0
    with evaluating(backbone), torch.inference_mode(), progress(side, len(pairs)) as advance:
        for pixels, good, others in _batches(dataset, readout.batch_size):
            bad.note([(sample.name, sample.reason) for sample in others])
            left_out += len(others)
            if good:
                images = normalise(pixels.to(job.device), readout.mean, readout.std)
                yield patch_maps(backbone, images, readout.layers[-1]).cpu(), good
            advance(len(good) + len(others))
    if left_out == len(pairs):
        raise UserError(f"--{side} {job.path(side)}: none of the {len(pairs)} images could be read")
    job.sides[side] = Side(len(pairs) - left_out, left_out, *known(pairs, job.path(side)))


def _batches(dataset: SegmentationDataset, size: int) -> LastingLoader[tuple[Tensor, list[Segmented], list[Segmented]]]:
    workers = worker_count(None, len(dataset))
    announced = Announced(dataset, workers, lambda index: dataset.pairs[index].image.name)

    def open_from(batch: int, by_pipe: bool) -> DataLoader[tuple[Tensor, list[Segmented], list[Segmented]]]:
        options = worker_options(workers, TIMEOUT, by_pipe or None)
        left = range(batch * size, len(dataset))
        return DataLoader(announced, size, sampler=left, collate_fn=collate, **options)  # type: ignore[arg-type]  # of items

    return LastingLoader(open_from)


def known(pairs: list[Pair], root: Path) -> Known:
    """Fingerprint images and masks."""
    paths = [path for pair in pairs for path in (pair.image, pair.mask)]
    paths = [path for path in dict.fromkeys(paths) if path.is_file()]  # others are among what could not be read
    lines = [f"{os.path.relpath(path, root)} {path.stat().st_size}\n" for path in paths]
    named = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    return files_known_by(named, [str(path) for path in paths])
