"""One feature vector an image: what every score and ``embed`` stand on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.data.augment import normalise
from ssl_vit.data.evalset import Alteration, EvalBatch, EvalDataset, EvalLoader
from ssl_vit.data.inventory import take_inventory
from ssl_vit.data.readers import worker_count
from ssl_vit.data.sources import Source
from ssl_vit.data.store import DONE, UNREADABLE, Store
from ssl_vit.data.values import Pixels
from ssl_vit.device import kind
from ssl_vit.errors import RunFailed, UserError
from ssl_vit.eval.protocol import Side
from ssl_vit.eval.ranks import Ranks
from ssl_vit.eval.readout import Readout, read_out
from ssl_vit.progress import Advance, progress

_SAFE = 0.999  # least cosine similarity of bfloat16 features with float32 ones


@dataclass(frozen=True)
class FeatureSet:
    """A set of features is in the order of its source, without the images that could not be read."""

    features: NDArray[np.float32]  # [N, D] as the model's own head would see them, not normalised
    labels: NDArray[np.int64]  # [N] class index; -1 where the source has no labels
    files: list[str]  # [N] names relative to the source's root
    side: Side  # how many images, how many left out, their fingerprint


@dataclass(frozen=True)
class Keep:
    """Features are kept in a memory-mapped file of this folder, which one or several processes fill.

    An extraction that was killed goes on where it was, and the file ends up the same to the byte. Each of several
    processes does every so-manieth block of images of the same folder, and the file is the same as one process's.
    """

    folder: Path
    weights_sha256: str | None = None  # so that a folder of other weights is refused
    ranks: Ranks = Ranks()  # noqa: RUF009 - frozen, so that sharing it is safe


def extract(
    backbone: Backbone,
    source: Source,
    readout: Readout,
    *,
    device: torch.device | str | None = None,
    workers: int | None = None,
    keep: Keep | None = None,
    alter: Alteration | None = None,
    title: str = "features",
) -> FeatureSet:
    """Every image becomes a feature vector: shorter side to image_size x 256/224 bicubic, central crop, normalised.

    The backbone runs in evaluation mode and without gradients, and every module gets its own mode back; nothing is
    augmented and nothing here can make it so. The same images and weights give the same features for any number of
    workers. Images that can't be read are named in the log and left out.

    Args:
        backbone: moved to the device and left there.
        source: images, with labels or without.
        readout: which layers, how pooled, at what precision.
        device: a GPU if there is one.
        workers: processes that read images; without, as many as there are cores, up to 8, for more than 1,000 images.
        keep: a folder for them; without, they are in memory alone.
        alter: a change of the decoded images on purpose, for scores of robustness; never kept.
        title: what the progress bar says.

    Raises:
        UserError: not one image could be read, the folder holds other features, bfloat16 is not safe.
    """
    backbone.to(device := torch.device(device or kind()))
    store, ranks = _open(backbone, source, readout, device, keep), keep.ranks if keep else Ranks()
    rows = _mine(store, readout.batch_size, ranks)
    if rows:
        dataset, count = EvalDataset(source, readout.image_size, alter=alter), worker_count(workers, len(rows))
        loader = EvalLoader(dataset, readout.batch_size, count, device.type == "cuda", max_bad=1.0, rows=rows)
        with evaluating(backbone), torch.inference_mode(), progress(title, len(rows)) as advance:
            _fill(store, backbone, readout, loader, device, advance)
    ranks.wait()
    return _collect(store, source)


def _mine(store: Store, block: int, ranks: Ranks) -> list[int]:
    """The rows that this process fills: every so-manieth block of those that are missing."""
    blocks = store.missing(block)
    ranks.wait()  # all have seen the same state before one changes it
    mine = [rows for rows in blocks if rows[0] // block % ranks.world == ranks.rank]
    return [int(row) for rows in mine for row in rows]


def _open(backbone: Backbone, source: Source, readout: Readout, device: torch.device, keep: Keep | None) -> Store:
    """The store, as wide as the features of an empty image are; the first process makes a folder."""
    grey = torch.zeros(1, 3, readout.image_size, readout.image_size, device=device)
    with evaluating(backbone), torch.inference_mode():
        width = read_out(backbone, grey, readout).shape[1]
    if keep is None:
        return Store.open(None, source, width, {})
    made = _described(readout, backbone.info.name, keep.weights_sha256)
    if source.pixels != Pixels():
        made["pixels"] = source.pixels._asdict()
    if keep.ranks.rank > 0:
        keep.ranks.wait()
    inventory = take_inventory(source) if keep.ranks.rank == 0 else None
    store = Store.open(keep.folder, source, width, made, first=keep.ranks.rank == 0, inventory=inventory)
    if keep.ranks.rank == 0:
        keep.ranks.wait()
    return store


def _described(readout: Readout, encoder: str, weights_sha256: str | None) -> dict[str, Any]:
    """What the features of an image depend on."""
    return asdict(readout) | {"encoder": encoder, "weights_sha256": weights_sha256}


def _fill(
    store: Store, backbone: Backbone, readout: Readout, loader: EvalLoader, device: torch.device, advance: Advance
) -> None:
    """One batch stays under way on the device while the next is read: fetching a result waits for it."""
    under_way: tuple[EvalBatch, Tensor] | None = None
    checked = readout.precision == "float32"

    def finish(batch: EvalBatch, features: Tensor) -> None:
        if not features.isfinite().all():
            raise RunFailed(
                f"{backbone.info.name}: its features hold NaN or infinity; the weights are broken, score others"
            )
        store.write(batch.index.numpy(), features.cpu().numpy(), batch.unread.numpy())
        advance(len(batch.index) + len(batch.unread))

    for batch in loader:
        features = torch.empty(0)
        if len(batch.index):
            images = normalise(batch.images.to(device, non_blocking=True), readout.mean, readout.std)
            features = read_out(backbone, images, readout)
            if not checked:
                _check_safe(backbone, images, features, readout)
                checked = True
        if under_way is not None:
            finish(*under_way)
        under_way = batch, features
    if under_way is not None:
        finish(*under_way)
    store.commit()


def _check_safe(backbone: Backbone, images: Tensor, features: Tensor, readout: Readout) -> None:
    """UserError where the first batch in bfloat16 points elsewhere than in float32."""
    exact = read_out(backbone, images, replace(readout, precision="float32"))
    least = float(torch.nn.functional.cosine_similarity(features, exact).min())
    if not least >= _SAFE:  # not: NaN is no similarity either
        raise UserError(
            f"{backbone.info.name}: bfloat16 features are not safe here (cosine similarity {least:.4f} with float32, "
            f"at least {_SAFE} is asked for); use --precision float32"
        )


def _collect(store: Store, source: Source) -> FeatureSet:
    good = np.flatnonzero(store.state == DONE)
    if not len(good):
        raise UserError(f"{source.root}: none of the {len(source)} images could be read; see the reasons above")
    everything = len(good) == len(source)
    labels = source.labels.astype(np.int64) if source.classes else np.full(len(source), -1)
    return FeatureSet(
        features=store.values if everything else store.values[good],
        labels=labels[good],
        files=[source.name(int(i)) for i in good],
        side=Side(len(good), int((store.state == UNREADABLE).sum()), str(source.fingerprint["sha256"])),
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode; afterwards every module is in its own (a frozen norm stays frozen)."""
    modes = {module: module.training for module in model.modules()}
    # Through train(): some families keep tables made from the weights while in evaluation mode and drop them there.
    model.train().eval()
    try:
        yield
    finally:
        model.train()
        for module, mode in modes.items():  # parents come before their children
            module.train(mode)
