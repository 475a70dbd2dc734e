"""How good a member of a supernet is, by its features of some images: with labels by k-NN, without by itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_vit import device
from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.config import RunConfig
from ssl_vit.data.augment import normalise
from ssl_vit.data.class_folders import in_class_folders
from ssl_vit.data.evalset import Alteration, EvalDataset
from ssl_vit.data.sources import Source, open_source
from ssl_vit.data.values import Pixels
from ssl_vit.errors import UserError
from ssl_vit.eval.knn import knn
from ssl_vit.eval.labelfree import rank_me, shared_neighbours, zoomed
from ssl_vit.eval.readout import Readout
from ssl_vit.eval.weights import pixels_of

IMAGES = 512  # at most, spread over the set
BATCH, NEIGHBOURS, K = 64, 10, 20


@dataclass(frozen=True)
class Judge:
    """Images that members are scored on, of which a member's statistics are measured too where it has some."""

    plain: Tensor  # uint8 [N, 3, S, S]
    moved: Tensor  # uint8 [N, 3, S, S], the second view of each
    labels: NDArray[np.int64] | None  # [N]
    rank: float  # of the largest member's features

    @classmethod
    def of(cls, largest: AdaptedBackbone, run: Path, config: RunConfig, labelled: str | None) -> Judge:
        """Read the images: labelled ones where they are given, else some of those that were learnt from."""
        links = config.data.outside_links
        source = open_source(config.data.path if labelled is None else labelled, links)
        source = replace(source, pixels=pixels_of(run) or Pixels())
        if labelled is not None:
            source, _ = in_class_folders(source)
            if not source.classes:
                raise UserError(f"--labelled {labelled}: no labels; expected one sub-folder of images a class")
        size = Readout.of(largest.info).image_size
        plain, labels = _read(source, size)
        moved, _ = _read(source, size, zoomed)
        judge = cls(plain, moved, labels if labelled is not None else None, 1.0)
        return replace(judge, rank=rank_me(judge.features(largest, plain)))

    @property
    def name(self) -> str:
        """What members are scored by, in words."""
        return "k-NN" if self.labels is not None else "shared neighbours x rank"

    def score(self, member: AdaptedBackbone) -> float:
        """Percent, higher is better.

        With labels, top-1 of every other image by its nearest among the rest. Without, of an image's nearest others
        how many its second view has too, times the rank of the features where that is less than the largest member's.
        """
        member = calibrated(member, self.plain)
        plain = self.features(member, self.plain)
        if self.labels is not None:
            halves = (plain[::2], self.labels[::2], plain[1::2], self.labels[1::2])
            return knn(*halves, ks=(K,)).top1[K]
        shared = shared_neighbours(plain, self.features(member, self.moved), min(NEIGHBOURS, len(plain) - 1))
        return shared * min(1.0, rank_me(plain) / self.rank)

    def features(self, network: AdaptedBackbone, images: Tensor) -> NDArray[np.float32]:
        """Pooled vectors [N, D] of images [N, 3, S, S]."""
        used = device.the_device()
        network.to(used)
        with torch.inference_mode():
            found = [
                network(_as_seen(network, part.to(used))).pooled.float().cpu() for part in torch.split(images, BATCH)
            ]
        vectors: NDArray[np.float32] = torch.cat(found).numpy()
        return vectors


def _as_seen(network: AdaptedBackbone, images: Tensor) -> Tensor:
    return normalise(images, network.info.mean, network.info.std)


@torch.no_grad()
def calibrated(network: AdaptedBackbone, images: Tensor) -> AdaptedBackbone:
    """The same network with batch norm's statistics of these images: those that members share are no member's own."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return network.eval()
    used, momenta = device.the_device(), [norm.momentum for norm in norms]
    network.to(used).eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    for part in torch.split(images, BATCH):
        network(_as_seen(network, part.to(used)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()


def _read(source: Source, size: int, alter: Alteration | None = None) -> tuple[Tensor, NDArray[np.int64]]:
    """Images [N, 3, S, S] evenly over a set, without those that can't be read, and their labels."""
    dataset = EvalDataset(source, size, alter=alter)
    places = np.unique(np.linspace(0, len(source) - 1, min(IMAGES, len(source))).round().astype(int))
    read = [sample for sample in (dataset[int(place)] for place in places) if sample.image is not None]
    if len(read) < 4:
        raise UserError(f"{source.root}: {len(read)} images could be read; members are compared on 4 at least")
    images = torch.stack([sample.image for sample in read if sample.image is not None])
    return images, np.array([sample.label for sample in read], dtype=np.int64)
