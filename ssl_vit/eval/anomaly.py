"""Anomalies: what is far from every patch of normal images (PatchCore, arXiv 2106.08265)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from ssl_vit.backbones.intermediates import layer_count, read_layers
from ssl_vit.data.augment import normalise
from ssl_vit.data.evalset import EvalDataset, EvalLoader
from ssl_vit.data.readers import worker_count
from ssl_vit.data.sources import Source
from ssl_vit.errors import UserError
from ssl_vit.eval.features import evaluating
from ssl_vit.eval.job import Job, Outcome
from ssl_vit.eval.kinds.anomaly import Anomaly
from ssl_vit.eval.protocol import Side
from ssl_vit.eval.readout import layer_columns
from ssl_vit.progress import progress

log = logging.getLogger("ssl_vit")
GOOD = "good"  # the sub-folder of normal images among those to be tested
MOST = 400_000  # patches of the good images that the memory is chosen from
PROJECTED = 128  # numbers of a patch that the choice looks at, by a random projection
EXAMPLES = 8


def score(job: Job, asked: Anomaly) -> Outcome:
    """The kind "anomaly" gives how well distances tell defects from normal images, and their pixels from others."""
    good, test = _open(job)
    layer_columns(job.backbone, replace(job.readout, pooling="mean"))  # refuses layers that aren't there
    patches = np.concatenate([_vectors(maps) for maps, _ in _maps(job, good, "good", asked)])
    memory = _memory(patches, asked.coreset, job.seed)
    index = faiss.IndexFlatL2(memory.shape[1])
    index.add(memory)
    truth = _masks_of(test, asked.masks)
    found = _Found(test.classes.index(GOOD))
    for maps, places in _maps(job, test, "test", asked):
        distances = nearest_distances(memory, index, _vectors(maps)).reshape(len(places), *maps.shape[-2:])
        for own, place in zip(distances, places, strict=True):
            found.add(test, place, float(own.max()), _heat(own, job.readout.image_size, asked.smooth), truth.get(place))
    settings = {
        "memory": f"{len(memory)} of {len(patches)} patches, greedy coreset",
        "patch": f"mean of {asked.neighbourhood} x {asked.neighbourhood}",
        "image": "its largest distance to the memory",
        "smooth": asked.smooth,
        "transform": f"shorter side to {job.readout.image_size}, central crop",
    }
    return Outcome(found.scores(test.classes), settings, seed=job.seed, more={"examples": found.examples})


class _Found:
    """What was found in the images that were tested."""

    def __init__(self, good: int) -> None:
        self.good = good
        self.labels, self.images = list[int](), list[float]()
        self.heat, self.masks = list[NDArray[np.float32]](), list[NDArray[np.bool_]]()
        self.examples = list[dict[str, Any]]()

    def add(self, test: Source, place: int, distance: float, heat: NDArray[np.float32], mask: Path | None) -> None:
        """Note one image; its pixels count where it is good or its mask is known."""
        label = test.label(place)
        assert label is not None
        self.labels.append(label)
        self.images.append(distance)
        if label == self.good or mask is not None:
            drawn = np.zeros(heat.shape, bool) if mask is None else _mask(mask, heat.shape[0])
            self.heat.append(heat)
            self.masks.append(drawn)
        if label != self.good and len(self.examples) < EXAMPLES:
            step = max(1, heat.shape[0] // 64)
            shown = {"file": test.path(place), "name": test.name(place), "distance": distance}
            self.examples.append(shown | {"heat": np.round(heat[::step, ::step].astype(float), 4).tolist()})

    def scores(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """Area under the curve in percent: of images, of each kind of defect, and of pixels where masks are known."""
        labels, distances = np.array(self.labels), np.array(self.images)
        by_kind = {
            name: 100 * auroc(distances[chosen], labels[chosen] != self.good)
            for number, name in enumerate(classes)
            if number != self.good and (chosen := (labels == number) | (labels == self.good)).any()
        }
        scores: dict[str, Any] = {"image_AUROC": 100 * auroc(distances, labels != self.good), "by_kind": by_kind}
        if any(mask.any() for mask in self.masks):
            pixels = np.concatenate([heat.ravel() for heat in self.heat])
            scores["pixel_AUROC"] = 100 * auroc(pixels, np.concatenate([mask.ravel() for mask in self.masks]))
        return scores


def auroc(scores: NDArray[Any], wanted: NDArray[np.bool_]) -> float:
    """The share of pairs of one wanted and one other in which the wanted one has the higher score; ties are half.

    >>> auroc(np.array([1.0, 2.0, 2.0, 3.0]), np.array([False, False, True, True]))
    0.875
    """
    count, others = int(wanted.sum()), int((~wanted).sum())
    if not count or not others:
        return float("nan")
    _, place, tied = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(tied) - (tied - 1) / 2)[place.ravel()]
    return float((ranks[wanted].sum() - count * (count + 1) / 2) / (count * others))


def _heat(distances: NDArray[np.float64], size: int, smooth: float) -> NDArray[np.float32]:
    """The distances [h, w] of patches as a map of pixels [S, S], smoothed by a standard deviation in pixels."""
    wide = F.interpolate(torch.from_numpy(distances)[None, None], (size, size), mode="bilinear", align_corners=False)
    if smooth:
        kernel = min(2 * round(4 * smooth) + 1, 2 * (size // 2) - 1)
        wide = gaussian_blur(wide, [kernel, kernel], [smooth, smooth])
    heat: NDArray[np.float32] = wide[0, 0].float().numpy()
    return heat


def greedy_coreset(features: NDArray[np.float32], count: int, seed: int) -> NDArray[np.int64]:
    """Choose rows of [N, D] so that each row is near a chosen one: always the row that is farthest from all chosen.

    Distances are taken after a random projection to 128 numbers, as the paper does it; a step costs one product of the
    rows with the last one chosen.
    """
    rng = np.random.default_rng(seed)
    if features.shape[1] > PROJECTED:
        features = features @ (rng.standard_normal((features.shape[1], PROJECTED)) / PROJECTED**0.5).astype(np.float32)
    rows = torch.from_numpy(np.ascontiguousarray(features, np.float64))
    norms = rows.square().sum(1)
    chosen = np.empty(min(count, len(rows)), np.int64)
    chosen[0] = rng.integers(len(rows))
    nearest = torch.full((len(rows),), torch.inf, dtype=torch.float64)
    for step in range(len(chosen)):
        if step:
            chosen[step] = int(nearest.argmax())
        last = int(chosen[step])
        torch.minimum(nearest, norms - 2 * (rows @ rows[last]) + norms[last], out=nearest)
        nearest[last] = -1.0
    return chosen


def nearest_distances(memory: NDArray[np.float32], index: Any, queries: NDArray[np.float32]) -> NDArray[np.float64]:
    """The Euclidean distance [M] of each query to its nearest row of the memory."""
    _, near = index.search(queries, 1)
    apart = queries.astype(np.float64) - memory[near[:, 0]]
    distances: NDArray[np.float64] = np.sqrt(np.square(apart).sum(1))
    return distances


def _memory(patches: NDArray[np.float32], share: float, seed: int) -> NDArray[np.float32]:
    if len(patches) > MOST:
        log.warning("the memory is chosen from %d of %d patches, drawn at random", MOST, len(patches))
        patches = patches[np.sort(np.random.default_rng(seed).permutation(len(patches))[:MOST])]
    count = max(1, round(share * len(patches)))
    return patches if count == len(patches) else np.ascontiguousarray(patches[greedy_coreset(patches, count, seed)])


def _vectors(maps: Tensor) -> NDArray[np.float32]:
    """[B, D, h, w] -> [B * h * w, D]."""
    return np.ascontiguousarray(maps.permute(0, 2, 3, 1).flatten(0, 2).numpy(), np.float32)


def _maps(job: Job, source: Source, side: str, asked: Anomaly) -> Iterator[tuple[Tensor, list[int]]]:
    """Patches [B, D, h, w] on the CPU, each the mean of its neighbourhood, layers side by side; and which images."""
    readout = job.readout
    dataset = EvalDataset(source, readout.image_size, readout.image_size)
    workers = worker_count(None, len(source))
    loader = EvalLoader(dataset, readout.batch_size, workers, job.device.type == "cuda", max_bad=1.0)
    read = 0
    with evaluating(job.backbone), torch.inference_mode(), progress(side, len(source)) as advance:
        for batch in loader:
            if len(batch.index):
                images = normalise(batch.images.to(job.device), readout.mean, readout.std)
                yield _patches(job, images, asked.neighbourhood).cpu(), batch.index.tolist()
            read += len(batch.index)
            advance(len(batch.index) + len(batch.unread))
    if not read:
        raise UserError(f"--{side} {source.root}: none of the {len(source)} images could be read")
    job.saw(side, Side(read, len(source) - read, str(source.fingerprint["sha256"])))


def _patches(job: Job, images: Tensor, neighbourhood: int) -> Tensor:
    count = layer_count(job.backbone)
    layers = [maps for maps, _ in read_layers(job.backbone, images, [each % count for each in job.readout.layers])]
    finest = max((layer.shape[-2:] for layer in layers), key=lambda size: size[0] * size[1])
    padding = neighbourhood // 2
    pooled = [F.avg_pool2d(layer.float(), neighbourhood, 1, padding, count_include_pad=False) for layer in layers]
    return torch.cat([F.interpolate(layer, finest, mode="bilinear", align_corners=False) for layer in pooled], 1)


def _open(job: Job) -> tuple[Source, Source]:
    """The normal images, and those to be tested, by kind; UserError where there are no good ones or no defects."""
    good, test = job.unlabelled("good"), job.unlabelled("test")
    where = f"--test {test.root}"
    if GOOD not in test.classes:
        raise UserError(f"{where}: no sub-folder {GOOD!r}; give a folder with good/ and one for each kind of defect")
    same = _contents(good) & _contents(test)
    if same:
        told = f"{len(same)} images lie in --good {good.root} too; a score on what is remembered says little"
        log.warning("%s: %s", where, told)
    if len(same) == len(good) == len(test):
        raise UserError(f"{where}: holds the images of --good; give others")
    job.classes = 2
    pixels = job.pixels_of(good, test)
    return replace(good, pixels=pixels), replace(test, pixels=pixels)


def _contents(source: Source) -> set[bytes]:
    found = set()
    for place in range(len(source)):
        path = Path(str(source.path(place)))
        if path.is_file():
            found.add(hashlib.sha256(path.read_bytes()).digest())
    return found


def _masks_of(test: Source, asked: str) -> dict[int, Path]:
    """The mask of each defect's image that has one: of the same name, or with "_mask" behind it (MVTec)."""
    folder = Path(test.root).parent / "ground_truth" if asked == "auto" else Path(asked)
    if not folder.is_dir():
        if asked != "auto":
            raise UserError(f"--masks {asked}: no such folder; give one with a sub-folder for each kind of defect")
        return {}
    found = dict[int, Path]()
    for place in range(len(test)):
        name = folder / Path(test.name(place)).with_suffix(".png")
        for path in (name, name.with_name(f"{name.stem}_mask.png")):
            if path.is_file():
                found[place] = path
    return found


def _mask(path: Path, size: int) -> NDArray[np.bool_]:
    """A mask [S, S], cut as its image is; UserError where it can't be read."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            short = min(image.size)
            width, height = (int(size * side / short) for side in image.size)
            drawn = np.array(image.convert("L").resize((width, height), Image.Resampling.NEAREST)) > 0
    except Exception as error:  # on hostile bytes Pillow raises nearly anything
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}); mend it or remove it") from error
    top, left = round((height - size) / 2), round((width - size) / 2)
    return drawn[top : top + size, left : left + size]
