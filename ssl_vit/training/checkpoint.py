"""Checkpoints that are whole or not there: written beside, synced, renamed, and checked before they are read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from ssl_vit.errors import RunFailed
from ssl_vit.files import sha256, write_atomically

log = logging.getLogger("ssl_vit")

KEEP = 2  # the newest, and one to fall back on


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's own save is staged in another folder, so that a kill or a full disk can leave half a file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``path`` and its sha256 in ``path.sha256``; the old file stays until the new one is complete.

        A full disk is reported here and not raised: the run goes on, and the other ranks wait for this one after it.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_atomically(path, lambda staged: _save(checkpoint, staged))
            digest = sha256(path)
            write_atomically(checksum_of(path), lambda staged: staged.write_text(digest + "\n"))
        except OSError as error:
            log.error("%s could not be saved (%s): the checkpoint before it is untouched", path, error)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Tensors and plain values only: a checkpoint is never allowed to run code."""
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint and its checksum."""
        checksum_of(Path(path)).unlink(missing_ok=True)
        Path(path).unlink(missing_ok=True)


def _save(checkpoint: dict[str, Any], staged: Path) -> None:
    """torch.save, whose own error hides the one of a full disk."""
    with staged.open("wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def checksum_of(path: Path) -> Path:
    """Where a checkpoint's sha256 is kept."""
    return path.with_name(path.name + ".sha256")


def checkpoint_path(folder: Path, step: int) -> Path:
    """The name sorts by step; no two steps share one."""
    return folder / f"step-{step:09d}.ckpt"


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose checksum holds, or None where there has been none.

    Broken ones are named in the log and passed over; RunFailed where all are broken.
    """
    found = sorted(folder.glob("step-*.ckpt"), reverse=True)
    for path in found:
        expected = checksum_of(path)
        if expected.is_file() and expected.read_text().strip() == sha256(path):
            return path
        log.warning("%s is damaged or incomplete (its checksum differs): trying the one before", path)
    if found:
        raise RunFailed(f"{folder}: none of the {len(found)} checkpoints is whole; start again with --overwrite")
    return None


def prune(folder: Path, newest: Path) -> None:
    """Delete all but ``newest`` and the one before it.

    A file of a later step is damaged, or the run would have gone on from it; a staged one was left by a killed save.
    """
    found = sorted(folder.glob("step-*.ckpt"))
    kept = [path for path in found if path <= newest][-KEEP:]
    for path in set(found) - set(kept):
        checksum_of(path).unlink(missing_ok=True)
        path.unlink()
    for path in folder.glob(".step-*"):
        path.unlink()
