"""Files of results appear whole or not at all, and one process at a time fills a folder."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

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
def alone(lock: Path, what: str) -> Iterator[None]:
    """Inside, no other process holds this lock; one that is killed lets go of it. `what` is for the log."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("%s: another process is at work there; waiting until it has ended", what)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
