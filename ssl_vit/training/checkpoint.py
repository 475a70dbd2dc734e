"""Checkpoints that are whole or not there: written beside, synced, renamed, and checked before they are read."""

from __future__ import annotations

import hashlib
import logging
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.checkpoints.description import OURS
from ssl_vit.errors import RunFailed
from ssl_vit.export import timm
from ssl_vit.files import room, sha256, write_atomically
from ssl_vit.training.advice import after_divergence
from ssl_vit.training.finite import not_finite
from ssl_vit.training.optim import with_momentum
from ssl_vit.training.sharding import is_sharded, load_sharded, save_sharded

if TYPE_CHECKING:
    from ssl_vit.training.looks.look import Look
    from ssl_vit.training.step import Learner

log = logging.getLogger("ssl_vit")

KEEP = 2  # the newest, and one to fall back on
_BESIDE = 10**6  # bytes of what else a run writes, at the least
_METHOD = "method."  # before the names of weights


class Checkpoints:
    """The checkpoints of a run: one every so many steps and at the end, the newest two kept.

    newest: the one that the run goes on from, which is whole.
    """

    def __init__(self, folder: Path, every: int, newest: Path | None = None) -> None:
        self._folder, self._every, self._newest, self._saved = folder, every, newest, -1
        self._failed = 0  # saves in a row

    def due(self, done: int, total: int) -> bool:
        """Whether one is to be saved after so many steps."""
        return done % self._every == 0 or done == total

    def check_room(self, learner: Learner) -> None:
        """RunFailed where the disk has no room for what a run can't do without: two checkpoints and the export."""
        size, exported = _size(learner), _bytes(learner.method.exported().state_dict())
        missing = max(0, KEEP - len(_found(self._folder)))
        need, free = missing * size + exported + _BESIDE, room(self._folder)
        if free is not None and free < need:
            raise RunFailed(
                f"{self._folder}: its disk has {_megabytes(free)} free, but {KEEP} checkpoints, the export and the "
                f"logs take {_megabytes(need)}; free some space there, or choose another place"
            )

    def newest(self) -> Path | None:
        """The newest checkpoint there is, of this run or of what it goes on from."""
        return max(_found(self._folder), default=None)

    def save(self, learner: Learner, looks: Sequence[Look], done: int) -> None:
        """Save what a run needs to go on after ``done`` steps, then drop what is older than the last two.

        Called on all ranks together; without sharding the first alone writes, and the others wait. Where the disk is
        full, the run goes on from step to step as long as an older one is there; RunFailed at the second time, but not
        at the last step, whose weights may still be exported.
        RunFailed too, with the checkpoints before left as they are, where a weight is not finite.
        """
        if self._saved == done:
            return
        if wrong := not_finite(learner):
            raise RunFailed(
                f"step {done}: {wrong} is not finite, and nothing is saved; "
                f"{after_divergence(learner.config, self.newest())}"
            )
        self._saved, path = done, checkpoint_path(self._folder, done)
        state, first, problem = _state(learner, looks, done), learner.fabric.is_global_zero, ""
        if first:
            self._make_room(_size(learner))
        if is_sharded(learner.fabric):
            problem = _attempt(path, lambda: save_sharded(learner.method, learner.optimizer, state, path))
            if first:
                problem = problem or _attempt(path, lambda: _seal(path))
        elif first:
            problem = write_checkpoint(_with_weights(state, learner), path)
        if first:
            prune(self._folder, path)
            self._mind(path, problem, last=done == learner.total)
        learner.fabric.barrier()

    def _make_room(self, size: int) -> None:
        """Where there is no room for another one, drop all but the newest."""
        free = room(self._folder)
        if free is not None and free < size and self._newest is not None:
            log.warning("%s: its disk has %s free: the older checkpoint makes room", self._folder, _megabytes(free))
            prune(self._folder, self._newest, keep=1)

    def _mind(self, path: Path, problem: str, *, last: bool) -> None:
        self._failed = self._failed + 1 if problem else 0
        if not problem:
            self._newest = path
        elif not last and (self._failed > 1 or self._newest is None):
            before = ", and there is none before it" if self._newest is None else ""
            raise RunFailed(f"{problem}{before}; free some space there, then go on with --resume")


def _size(learner: Learner) -> int:
    """About how large a checkpoint becomes, bytes: weights, and moments of those that are trained."""
    moments = 1 if learner.config.optim.optimizer == "sgd" else 2
    trained = {name: weight for name, weight in learner.method.named_parameters() if weight.requires_grad}
    return _bytes(learner.method.state_dict()) + moments * _bytes(trained)


def _bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors.values())


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def write_checkpoint(state: dict[str, Any], path: Path) -> str:
    """Write a checkpoint and its sha256 in ``path.sha256``; an old file stays until the new one is complete.

    A full disk is reported in the log and in what is returned, not raised: the other ranks wait for this one after it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)

    def write() -> None:
        for place in (path, checksum_of(path)):
            if place.is_dir():  # of another kind, or the run would have gone on from it
                shutil.rmtree(place)
        write_atomically(path, lambda staged: _save(state, staged))
        _seal(path)

    return _attempt(path, write)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read tensors and plain values only: a checkpoint is never allowed to run code."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _attempt(path: Path, write: Callable[[], None]) -> str:
    try:
        write()
    except OSError as error:
        problem = f"{path} could not be saved ({error.strerror or error})"
        log.error("%s: what was saved before is untouched", problem)
        return problem
    return ""


def _seal(path: Path) -> None:
    digest = checksum(path)
    write_atomically(checksum_of(path), lambda staged: staged.write_text(digest + "\n"))


def _state(learner: Learner, looks: Sequence[Look], done: int) -> dict[str, Any]:
    """All but weights and the optimiser's: the looks' own, and which weights are the backbone that is exported."""
    method, data = learner.method, learner.config.data
    backbone = method.exported()
    assert isinstance(backbone, AdaptedBackbone)
    place = next(name for name, module in method.named_modules() if module is backbone.model)
    pixels = {"pixels": {"range": data.range, "bands": data.bands}}
    scaler = {} if learner.scaler is None else {"scaler": learner.scaler.state_dict()}
    return {
        "global_step": done,
        "looks": {look.name: look.state() for look in looks if look.name},
        OURS: {"exported": f"{_METHOD}{place}.", "config": timm.config(backbone, data.mean, data.std, pixels)},
    } | scaler


def _with_weights(state: dict[str, Any], learner: Learner) -> dict[str, Any]:
    weights = {f"{_METHOD}{name}": value for name, value in learner.method.state_dict().items()}
    return state | {"state_dict": weights, "optimizer_states": [learner.optimizer.state_dict()]}


def go_on_from(path: Path, learner: Learner, looks: Sequence[Look]) -> int:
    """Bring a learner and its looks to where a checkpoint was written; the number of steps done by then.

    Those that were written by Lightning's Trainer, before there was a loop of our own, are understood too.
    """
    if path.is_dir():
        saved = load_sharded(learner.method, learner.optimizer, path)
    else:
        saved = read_checkpoint(path)
        weights = {name.removeprefix(_METHOD): value for name, value in saved["state_dict"].items()}
        learner.method.load_state_dict(weights)
        learner.optimizer.load_state_dict(saved["optimizer_states"][0])
        with_momentum(learner.optimizer)  # older checkpoints lack it for parameters that had no gradient yet
    of_looks = saved["looks"] if "looks" in saved else {"health": saved["callbacks"]["Health"]}
    for look in looks:
        if look.name in of_looks:
            look.restore_state(of_looks[look.name])
    if learner.scaler is not None:
        learner.scaler.load_state_dict(saved["scaler"] if "scaler" in saved else saved["MixedPrecision"])
    return int(saved["global_step"])


def _save(state: dict[str, Any], staged: Path) -> None:
    """torch.save, whose own error hides the one of a full disk."""
    with staged.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def checksum_of(path: Path) -> Path:
    """Where a checkpoint's sha256 is kept."""
    return path.with_name(path.name + ".sha256")


def checksum(path: Path) -> str:
    """Hex digest of a checkpoint: of a file, or of the files of a folder with their names."""
    if not path.is_dir():
        return sha256(path)
    files = sorted(path.iterdir())
    return hashlib.sha256("".join(f"{file.name} {sha256(file)}\n" for file in files).encode()).hexdigest()


def checkpoint_path(folder: Path, step: int) -> Path:
    """The name sorts by step; no two steps share one."""
    return folder / f"step-{step:09d}.ckpt"


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose checksum holds, or None where there has been none.

    Broken ones are named in the log and passed over; RunFailed where all are broken.
    """
    found = sorted(_found(folder), reverse=True)
    for path in found:
        if _is_whole(path):
            return path
        log.warning("%s is damaged or incomplete (its checksum differs): trying the one before", path)
    if len(found) == 1 and not checksum_of(found[0]).exists() and _has_its_sums(found[0]):
        log.warning("%s: killed before its checksum was written; the sums in it hold: the run goes on", found[0])
        return found[0]
    if found:
        raise RunFailed(f"{folder}: none of the {len(found)} checkpoints is whole; start again with --overwrite")
    return None


def _has_its_sums(path: Path) -> bool:
    """Whether every part of a checkpoint that is one file has the CRC that torch has written with it."""
    try:
        with zipfile.ZipFile(path) as parts:
            return parts.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def _found(folder: Path) -> list[Path]:
    """What is named as a checkpoint."""
    return [path for path in folder.glob("step-*.ckpt") if path.stem.removeprefix("step-").isdecimal()]


def _is_whole(path: Path) -> bool:
    """Whether its checksum holds; not where there is none, or a file or folder of another kind has its name."""
    try:
        return checksum_of(path).read_bytes().strip() == checksum(path).encode()
    except OSError:
        return False


def prune(folder: Path, newest: Path, keep: int = KEEP) -> None:
    """Delete all but ``newest`` and the one before it, or those that are to be kept.

    A file of a later step is damaged, or the run would have gone on from it; a staged one was left by a killed save.
    """
    found = sorted(_found(folder))
    kept = [path for path in found if path <= newest][-keep:]
    for path in set(found) - set(kept):
        _remove(checksum_of(path))
        _remove(path)
    for path in folder.glob(".step-*"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
