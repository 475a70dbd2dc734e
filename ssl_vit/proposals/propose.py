"""The boxes of every image of a source are made once and kept."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from ssl_vit.data.bad import BadFiles, BadList, note_damage
from ssl_vit.data.decode import BadImage
from ssl_vit.data.inventory import Inventory, changes_since, take_inventory
from ssl_vit.data.lasting import Announced, LastingLoader
from ssl_vit.data.readers import TIMEOUT, worker_count, worker_options
from ssl_vit.data.sources import Source
from ssl_vit.data.store import Store
from ssl_vit.files import alone
from ssl_vit.progress import progress
from ssl_vit.proposals.prior import Boxes, Prior
from ssl_vit.proposals.store import BOXES, Proposals

_BLOCK = 64  # images that are done together
_MANY = 2 * _BLOCK  # images from which worker processes are worth starting

_Looked = tuple[int, NDArray[Any] | None, BadFiles]  # index, what the prior saw or None for an unreadable image


def propose(
    source: Source,
    prior: Prior,
    folder: str | os.PathLike[str],
    *,
    workers: int | None = None,
    max_bad: float = 0.05,
) -> Proposals:
    """Return the boxes of every image, from `folder` where they are there, else made and kept there.

    They lie in a folder of their own within `folder`, named after everything that they depend on: other settings or
    other images never meet them. Work that was killed goes on where it was. A second process that asks for the same
    waits until the first is done. Images that can't be read are named in the log and beside the boxes, and have none.

    Args:
        source: images, of which labels are not looked at.
        prior: see ``create_prior``.
        folder: where boxes are kept; made if it is not there.
        workers: processes that read images; without, as many as there are cores, up to 8, for more than 128 images.
        max_bad: the share of the images that may be unreadable.

    Raises:
        UserError: the folder holds something else.
        RunFailed: more unreadable images, or parts of archives, than `max_bad`, or a process that reads was lost.
    """
    note_damage(source, max_bad)
    made, inventory = prior.settings(), take_inventory(source)
    kept = _of_these(Path(folder) / _name(prior, made | {"data": source.fingerprint}), inventory)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with alone(kept.with_suffix(".lock"), str(kept)):
        store = Store.open(kept, source, 4 * prior.count, made, file=BOXES, inventory=inventory)
        _fill(store, source, prior, workers, BadList(len(source), max_bad, kept.with_suffix(".bad.jsonl"), _LEFT_OUT))
    return Proposals(kept)


_LEFT_OUT = "it has no boxes"


def _name(prior: Prior, depends: dict[str, Any]) -> str:
    text = json.dumps(depends, sort_keys=True)
    return f"{prior.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _of_these(first: Path, inventory: Inventory | None) -> Path:
    """The folder of these very images: where some were edited in place, those of before keep theirs."""
    numbered = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(folder for folder in itertools.chain([first], numbered) if not changes_since(folder, inventory))


class _Images(Dataset[_Looked]):
    """What the prior sees of each image."""

    def __init__(self, source: Source, prior: Prior) -> None:
        self.source, self.prior = source, prior

    def __getitem__(self, index: int) -> _Looked:
        try:
            image = self.source.read(index, want=self.prior.side)
        except BadImage as error:
            return index, None, [(self.source.name(index), error.reason)]
        return index, self.prior.look(image, index), []


def _fill(store: Store, source: Source, prior: Prior, workers: int | None, bad: BadList) -> None:
    blocks = store.missing(_BLOCK)
    if not blocks:
        return
    rows = np.concatenate(blocks).tolist()
    count = worker_count(workers, len(rows), _MANY)
    images = Announced(_Images(source, prior), count, source.name)

    def open_from(block: int, by_pipe: bool) -> DataLoader[list[_Looked]]:
        options = worker_options(count, TIMEOUT, by_pipe or None)
        left = rows[block * _BLOCK :]
        return DataLoader(images, batch_size=_BLOCK, sampler=left, collate_fn=list, **options)  # type: ignore[arg-type]  # of items

    with progress("proposals", len(source), len(source) - len(rows)) as advance:
        for looked in LastingLoader(open_from):
            unread = [index for index, seen, _ in looked if seen is None]
            seen = [(index, seen) for index, seen, _ in looked if seen is not None]
            values = _padded(prior.boxes([each for _, each in seen]), prior.count)
            store.write(np.array([index for index, _ in seen], np.int64), values, np.array(unread, np.int64))
            bad.note([entry for _, _, entries in looked for entry in entries])
            advance(len(looked))
    store.commit()


def _padded(boxes: list[Boxes], count: int) -> NDArray[np.float32]:
    """[B, 4 * count], zeros behind the last box."""
    rows = np.zeros((len(boxes), count, 4), np.float32)
    for row, found in zip(rows, boxes, strict=True):
        row[: len(found)] = found[:count]
    return rows.reshape(len(rows), -1)
