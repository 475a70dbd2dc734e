"""Files and folders that appear whole or not at all, their checksums, and locks that let one process at a time work."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from ssl_vit.errors import UserError

PARTIAL = ".partial"  # how the name ends of a file or folder that is still being written

_log = logging.getLogger("ssl_vit")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a file in one moment: ``write`` fills a path beside it, which is synced and renamed over ``path``.

    A reader, a kill or a full disk never leaves half a file: the old one stays until the new one is complete.
    """
    staged = _beside(path)
    try:
        write(staged)
        with staged.open("rb+") as file:
            os.fsync(file.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    _sync(path.parent)


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Replace a file in one moment, as ``write_atomically`` does, where ``write`` wants an open file."""

    def fill(staged: Path) -> None:
        with staged.open("wb") as file:
            write(file)

    write_atomically(path, fill)


@contextmanager
def new_folder(folder: Path | str) -> Iterator[Path]:
    """A staging folder that becomes ``folder`` when the block ends well, and vanishes when it doesn't.

    Raises:
        UserError: ``folder`` exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder}: exists already and is never overwritten; choose another folder or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = _beside(folder)
    staging.mkdir()
    try:
        yield staging
        for path in [*staging.iterdir(), staging]:
            _sync(path)
        staging.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # gone already when all went well


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")


def _sync(path: Path) -> None:
    """Wait until a file's or a folder's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def alone(lock: Path, what: str, *, wait: bool = True) -> Iterator[None]:
    """Inside, no other process holds this lock; one that is killed lets go of it, and its workers never have it.

    what: is for messages; wait: until the other has ended, or raise UserError at once.
    """
    with lock.open("w") as file:
        if not _locked(file, what):
            if not wait:
                raise UserError(f"{what}: another process is at work there; wait until it has ended, or stop it")
            _log.info("%s: another process is at work there; waiting until it has ended", what)
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _locked(file: TextIO, what: str) -> bool:
    """False where another process has it; a file system that knows no locks goes without, and the log says so."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        _log.warning("%s: its file system has no locks; see to it that one process at a time works there", what)
    return True
