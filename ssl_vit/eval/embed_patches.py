"""``ssl-vit embed --patches``: the vectors of all patches of every image, in a file to be memory-mapped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ssl_vit.data.augment import normalise
from ssl_vit.data.evalset import EvalDataset, EvalLoader
from ssl_vit.data.inventory import known_by
from ssl_vit.data.readers import worker_count
from ssl_vit.data.sources import Source
from ssl_vit.errors import RunFailed, UserError
from ssl_vit.eval.features import evaluating
from ssl_vit.eval.job import Job, Outcome
from ssl_vit.eval.protocol import Side
from ssl_vit.eval.readout import patch_maps
from ssl_vit.files import write_atomically, write_whole
from ssl_vit.progress import progress


def write_patches(job: Job, source: Source, out: Path) -> None:
    """Write [N, h, w, D] float16 to `out`, a .npy, and files, the grid and how it was made to a .json beside it.

    Images are seen as by ``embed``; those that can't be read are named in the log and have no row.

    Raises:
        UserError: several layers, or not one image could be read.
        RunFailed: vectors that are not finite, or too large for float16.
    """
    if len(job.readout.layers) > 1:
        raise UserError("embed --patches: --layers: the patches of one layer are written; name one")
    files = list[str]()
    grids = set[tuple[int, int]]()

    def fill(staged: Path) -> None:
        with open(staged, "wb") as file:
            for maps, names in _batches(job, source):
                rows = maps.permute(0, 2, 3, 1).half()
                if not rows.isfinite().all():
                    raise RunFailed(f"{job.backbone.info.name}: patches hold NaN or what float16 can't; score others")
                if not files:
                    _header(file, (len(source), *rows.shape[1:]))
                files.extend(names)
                grids.add((rows.shape[1], rows.shape[2]))
                file.write(np.ascontiguousarray(rows.numpy()).tobytes())
                width = rows.shape[3]
            if not files:
                raise UserError(f"{source.root}: none of the {len(source)} images could be read; see the reasons above")
            file.seek(0)
            _header(file, (len(files), *next(iter(grids)), width))

    write_atomically(out, fill)
    protocol = job.protocol("patches", Outcome({}, {})).as_dict()
    facts = {"files": files, "grid": list(next(iter(grids))), "dtype": "float16", "protocol": protocol}
    write_whole(out.with_suffix(".json"), lambda file: file.write(json.dumps(facts).encode()))


def _header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """numpy's header leaves room for other numbers of rows, so that it is as long for each."""
    header: dict[str, Any] = {"descr": "<f2", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _batches(job: Job, source: Source) -> Iterator[tuple[Tensor, list[str]]]:
    """Patches [B, D, h, w] on the CPU, and their images' names."""
    readout, read = job.readout, 0
    dataset = EvalDataset(source, readout.image_size)
    loader = EvalLoader(dataset, readout.batch_size, worker_count(None, len(source)), max_bad=1.0)
    with evaluating(job.backbone), torch.inference_mode(), progress("patches", len(source)) as advance:
        for batch in loader:
            if len(batch.index):
                images = normalise(batch.images.to(job.device), readout.mean, readout.std)
                names = [source.name(index) for index in batch.index.tolist()]
                yield patch_maps(job.backbone, images, readout.layers[-1]).cpu(), names
            read += len(batch.index)
            advance(len(batch.index) + len(batch.unread))
    job.saw("data", Side(read, len(source) - read, str(source.fingerprint["sha256"])).of(known_by(source)))
