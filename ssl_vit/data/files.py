"""Files of results appear whole or not at all, and one process at a time fills a folder."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from ssl_vit.errors import UserError

PARTIAL = ".partial"  # how the name ends of a file that is still being written

_log = logging.getLogger("ssl_vit")


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write beside, then rename: no reader ever sees half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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
