"""What features are worth without a single label: two runs can be compared by it on the user's own images."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.backbones.diversity import patch_cosine
from ssl_vit.backbones.intermediates import layer_count
from ssl_vit.data.augment import normalise
from ssl_vit.data.crops import Box, make_views, resize, sample_rng
from ssl_vit.data.evalset import EvalDataset, EvalLoader
from ssl_vit.data.plan import View, ViewPlan
from ssl_vit.data.sources import Source
from ssl_vit.errors import UserError
from ssl_vit.eval.features import evaluating
from ssl_vit.eval.job import Job, Outcome
from ssl_vit.eval.knn import nearest_neighbours, unit
from ssl_vit.eval.readout import patch_maps

PAIRS = 2048  # images between which distances are averaged
PATCH_IMAGES = 64  # whose patches are compared
SCALE = (0.4, 1.0)  # of the area, in LiDAR's crops; the paper takes the views that the model was trained with
_LIDAR_DELTA = 1e-4  # added to what changes, the paper's
SHIFT = 0.85  # share of a side that the second view keeps


def score(job: Job, k: int, views: int) -> Outcome:
    """The kind "labelfree" gives rank, LiDAR, alignment, uniformity, shared neighbours, and patches' cosine."""
    source = job.unlabelled("data")
    plain = job.features(source, "data").features
    if len(plain) < 2:
        raise UserError(f"--data {source.root}: a single image; these scores compare images with each other")
    moved = job.altered(source, zoomed, "second view").features
    crops = [
        job.altered(source, partial(cropped, job.seed, view), f"crop {view + 1}").features for view in range(views)
    ]
    k = min(k, len(plain) - 1)
    scores = {
        "rank": rank_me(plain),
        "lidar": lidar(np.stack(crops)),
        "alignment": alignment(plain, moved),
        "uniformity": uniformity(plain, job.seed),
        "shared_neighbours": shared_neighbours(plain, moved, k),
        "patch_cosine": patch_cosines(job.backbone, first_images(job, source)),
    }
    view = f"the image mirrored, its central {SHIFT:.0%} enlarged"
    settings = {"k": k, "second_view": view, "pairs": PAIRS, "lidar_crops": f"{views}, of {SCALE} of the area"}
    return Outcome(scores, settings, seed=job.seed)


def patch_cosines(backbone: Backbone, images: Tensor) -> list[float]:
    """For each layer, from the first to the last, how alike two patches of an image are (arXiv 2104.12753), on average.

    images: [B, 3, S, S] normalised. It is the mean absolute cosine: 1 where all patches are one; so it shows where a
    deep network forgets its patches.
    """
    with evaluating(backbone), torch.inference_mode():
        maps = [patch_maps(backbone, images, layer) for layer in range(layer_count(backbone))]
        return [round(float(patch_cosine(each.flatten(2).mT)), 4) for each in maps]


def first_images(job: Job, source: Source) -> Tensor:
    """Some images [B, 3, S, S] as the job's network sees them."""
    batch = next(iter(EvalLoader(EvalDataset(source, job.readout.image_size), PATCH_IMAGES, max_bad=1.0)))
    return normalise(batch.images.to(job.device), job.readout.mean, job.readout.std)


def zoomed(image: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    """The second view [S, S, 3] is the image mirrored, its central part enlarged."""
    size = image.shape[0]
    side = round(SHIFT * size)
    start = (size - side) // 2
    pixels: NDArray[np.uint8] = resize(image, Box(start, start, side, side), (size, size)).permute(1, 2, 0).numpy()
    return pixels[:, ::-1]


def cropped(seed: int, view: int, image: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    """One of LiDAR's views [S, S, 3] is a random crop, enlarged, and mirrored half the time."""
    crop = View("crop", 1, image.shape[0], scale=SCALE, flip_p=0.5)
    (pixels,), _ = make_views(image, ViewPlan((crop,)), sample_rng(seed, view, index))
    found: NDArray[np.uint8] = pixels[0].permute(1, 2, 0).numpy()
    return found


def rank_me(features: NDArray[np.float32]) -> float:
    """RankMe (arXiv 2210.02885) is exp of the entropy of the singular values of features [N, D]; 1 is collapse."""
    values = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    if not values.any():  # all of them 0
        return 1.0
    share = values / values.sum() + 1e-7
    return float(np.exp(-(share * np.log(share)).sum()))


def lidar(views: NDArray[np.float32]) -> float:
    """LiDAR (arXiv 2312.04000) of features [V, N, D] of V views of N images is the effective rank of what tells them
    apart, measured in what changes between the views of one image; 1 is collapse.
    """
    x, dims = views.astype(np.float64), views.shape[2]
    if (count := x.shape[0] * x.shape[1]) < dims:  # few vectors: all that counts lies in what they span
        _, spanned = np.linalg.qr(x.reshape(count, dims).T)
        x = spanned.T.reshape(*x.shape[:2], count)
    means = x.mean(0)
    between = np.cov(means, rowvar=False)
    spread = (x - means).reshape(-1, x.shape[2])
    within = spread.T @ spread / (len(means) * (len(x) - 1)) + _LIDAR_DELTA * np.eye(x.shape[2])
    values, vectors = np.linalg.eigh(within)
    whiten = vectors / np.sqrt(values)
    told = np.pad(np.linalg.eigvalsh(whiten.T @ between @ whiten).clip(0), (0, dims - x.shape[2]))
    if not told.any():  # all images alike
        return 1.0
    share = told / told.sum() + 1e-7
    return float(np.exp(-(share * np.log(share)).sum()))


def alignment(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Alignment is the mean squared distance of two views [N, D] on the sphere (arXiv 2005.10242); 0 is best."""
    return float(np.square(unit(a) - unit(b)).sum(1).mean())


def uniformity(features: NDArray[np.float32], seed: int) -> float:
    """Uniformity is the log of pairs' mean Gaussian potential (arXiv 2005.10242, t = 2); low is good, 0 collapse."""
    rows = np.random.default_rng(seed).permutation(len(features))[:PAIRS]
    distances: Tensor = torch.nn.functional.pdist(torch.from_numpy(unit(features[rows])).double())
    return float(distances.square().mul(-2).exp().mean().log())


def shared_neighbours(a: NDArray[np.float32], b: NDArray[np.float32], k: int) -> float:
    """The percent says how many of an image's k nearest others in a [N, D] its second view in b has too."""
    return 100 * float(np.mean(shared_by_image(a, b, k)))


def shared_by_image(a: NDArray[np.float32], b: NDArray[np.float32], k: int) -> NDArray[np.float64]:
    """The same for every image, as shares [N] of 1."""
    rows = np.arange(len(a))[:, None]
    found = []
    for queries in (a, b):
        near = nearest_neighbours(a, queries, k + 1)[1]
        own = near == rows
        own[:, -1] |= ~own.any(1)  # where the image itself is not among them the last goes
        found.append(near[~own].reshape(len(a), k))
    return np.array([len(np.intersect1d(one, other)) / k for one, other in zip(*found, strict=True)])
