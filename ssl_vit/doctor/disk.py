"""The folder for runs: whether it can be written, how much fits, how quick it is, and what kind of disk it is."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ssl_vit import system
from ssl_vit.doctor.finding import Finding, fine, hurts, stops

# Three checkpoints of DINO's ViT-S, of which two are kept and one is being written, and the weights.
_NEED = 2.5e9
_LITTLE = 50e6  # bytes; even small networks need that
_SLOW = 50e6  # bytes a second
_TRIED = 64 * 2**20  # bytes
_INODES = 1000
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "lustre", "gpfs", "beegfs")


def examine_disk(out: Path) -> Iterator[Finding]:
    """Look at the nearest folder that is there."""
    place = next(path for path in (out.absolute(), *out.absolute().parents) if os.path.lexists(path))
    if not place.is_dir():
        yield stops("disk", f"{place} is a file: {out} can't be made there", "choose another folder: --out DIR")
        return
    yield _room(place)
    yield from _writing(place)


def _room(place: Path) -> Finding:
    found, status = shutil.disk_usage(place), os.statvfs(place) if hasattr(os, "statvfs") else None
    words, mend = f"{place}: {found.free / 1e9:,.1f} GB free", "make room, or choose another disk: --out DIR"
    if status and status.f_files and status.f_favail < _INODES:
        return stops("disk", f"{words}, and only {status.f_favail} more files fit (inodes)", mend)
    if found.free < _LITTLE:
        return stops("disk", f"{words}: not one checkpoint fits", mend)
    if found.free < _NEED:
        words += f": the checkpoints of a usual run (DINO, ViT-S) take {_NEED / 1e9:.1f} GB, of larger networks more"
        return hurts("disk", words, mend)
    return fine("disk", words)


def _writing(place: Path) -> Iterator[Finding]:
    """Write a file that has no name, so that nothing is left of it whatever happens."""
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            size = min(_TRIED, shutil.disk_usage(place).free // 4)
            speed = _speed(file.fileno(), size)
            locks = _has_locks(file.fileno())
    except OSError as error:
        yield stops("writing", f"{place}: {error.strerror}", "choose another folder: --out DIR")
        return
    kind = _file_system(place)
    if speed is not None and speed < _SLOW:
        words = f"{place}: {speed / 1e6:.0f} MB/s to {kind}: a checkpoint of 0.8 GB takes {0.8e9 / speed:.0f} s"
        yield hurts("writing", words, "save less often (--set train.checkpoint_every=STEPS), or --out on a local disk")
    else:
        yield fine("writing", f"{kind}" if speed is None else f"{speed / 1e6:,.0f} MB/s to {kind}")
    if not locks:
        words = f"{place}: {kind} has no locks: nothing keeps two runs from writing one folder"
        yield hurts("locks", words, "give each run a folder of its own, or --out on a local disk")
    if kind in ("tmpfs", "ramfs"):
        yield hurts("runs", f"{place} lies in memory ({kind}): it is gone at the next start", "--out on a disk")


def _speed(descriptor: int, size: int) -> float | None:
    """Bytes a second, with the time until they are on the disk; None where there is no room to try."""
    if size < 2**20:
        return None
    block = os.urandom(2**20)
    start = time.perf_counter()
    for _ in range(size // len(block)):
        os.write(descriptor, block)
    os.fsync(descriptor)
    return size / (time.perf_counter() - start)


def _has_locks(descriptor: int) -> bool:
    try:
        system.lock(descriptor)
    except OSError:
        return False
    return True


def _file_system(place: Path) -> str:
    """Its kind, as the kernel's table of mounts has it."""
    try:
        rows = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return "a disk"
    real = str(place.resolve())
    above = [(row[1], row[2]) for row in rows if real == row[1] or f"{real}/".startswith(f"{row[1].rstrip('/')}/")]
    kind = max(above, key=lambda row: len(row[0]))[1] if above else "a disk"
    return f"{kind}, over the network" if kind in _NETWORK else kind
